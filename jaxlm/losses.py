"""The sampled losses of TensorFlow: sampled softmax and noise-contrastive estimation."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.sampling import (
    FLOAT_MIN,
    SampledValues,
    check_ids,
    last_occurrences,
    log_uniform_candidate_sampler,
)

Table = jax.Array | Sequence[jax.Array]  # [V, ...], or that cut into contiguous shards of rows


class ClassRows(NamedTuple):
    """The softmax rows a sampled loss reads: those of the labels and those of the candidates."""

    true_weights: jax.Array  # [N, num_true, D]
    true_biases: jax.Array  # [N, num_true]
    sampled_weights: jax.Array  # [S, D]
    sampled_biases: jax.Array  # [S]


def gather_rows(weights: Table, biases: Table, labels: jax.Array, candidates: jax.Array) -> ClassRows:
    """Gathers rows of `weights` `[V, D]` and `biases` `[V]` for labels `[N, num_true]` and candidates `[S]`."""
    return ClassRows(
        _lookup(weights, labels), _lookup(biases, labels), _lookup(weights, candidates), _lookup(biases, candidates)
    )


def _lookup(table: Table, ids: jax.Array) -> jax.Array:
    """Gathers rows of a table, or of shards that hold its rows one after the other."""
    if not isinstance(table, Sequence):
        return table[ids]
    rows, start = jnp.zeros((*ids.shape, *table[0].shape[1:]), table[0].dtype), 0
    for shard in table:
        place = jnp.where((ids >= start) & (ids < start + shard.shape[0]), ids - start, shard.shape[0])
        rows += shard.at[place].get(mode="fill", fill_value=0)
        start += shard.shape[0]
    return rows


def sampled_softmax_loss(
    weights: Table,
    biases: Table,
    labels: jax.Array,
    inputs: jax.Array,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: SampledValues | None = None,
    remove_accidental_hits: bool = True,
    seed: None = None,
    name: str = "sampled_softmax_loss",
    *,
    partition_strategy: str = "div",
    subtract_log_q: bool = True,
    key: jax.Array | None = None,
) -> jax.Array:
    """Computes the sampled softmax loss: softmax cross-entropy over true and sampled classes.

    logit = inputs @ weights.T + biases - log(expected count); a training loss only, not comparable
    with the exact loss.

    Args:
      weights: `[V, D]` float32 or bfloat16, one row a class; or a tuple of contiguous shards of rows.
      biases: `[V]` float32 or bfloat16; or a tuple of shards.
      labels: `[N, num_true]` integer, the true classes.
      inputs: `[N, D]` float32 or bfloat16, what the last layer puts out.
      num_sampled: number of classes S to sample for the batch.
      num_classes: number of classes V.
      num_true: number of true classes an example has.
      sampled_values: what a candidate sampler returned; None draws log-uniform, unique candidates.
      remove_accidental_hits: whether a candidate that is a label of the example is left out of it; of a
        candidate drawn more than once only the last place is, as in TensorFlow.
      seed: must be None; `key` takes its place.
      name: names the operations in a profile.
      partition_strategy: "div", as TensorFlow 2's; "mod" shards are not read.
      subtract_log_q: whether to correct the logits by the expected counts.
      key: a `jax.random.key`, needed where `sampled_values` is None.

    Returns:
      `[N]` float32, the loss of each example in nats; logits are accumulated in float32.

    Raises:
      ValueError: a shape does not fit, a concrete id is out of range, both `sampled_values` and `key`
        are missing, or an argument asks for what does not exist here.

    References:
      `tf.nn.sampled_softmax_loss`; Jean et al. 2014, https://arxiv.org/abs/1412.2007, section 3.
    """
    if seed is not None:
        raise ValueError(f"Invalid `seed`: JAX draws from `key`, a jax.random.key. Received: seed={seed!r}.")
    _check_shapes(weights, biases, labels, inputs, num_classes, num_true, partition_strategy)
    values = _sampled_values(sampled_values, key, labels, num_sampled, num_classes)
    with jax.named_scope(name):
        rows = gather_rows(weights, biases, labels, values.sampled_candidates)
        return sampled_softmax_loss_of_rows(
            rows, labels, inputs, values, remove_accidental_hits, subtract_log_q=subtract_log_q
        )


def nce_loss(
    weights: Table,
    biases: Table,
    labels: jax.Array,
    inputs: jax.Array,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: SampledValues | None = None,
    remove_accidental_hits: bool = False,
    name: str = "nce_loss",
    *,
    partition_strategy: str = "div",
    subtract_log_q: bool = True,
    key: jax.Array | None = None,
) -> jax.Array:
    """Computes the noise-contrastive loss: logistic regression of true classes against sampled ones.

    The sum of softplus(logit) - logit / num_true over true classes and of softplus(logit) over candidates,
    with the logits of `sampled_softmax_loss`.

    Args:
      weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values: as those of
        `sampled_softmax_loss`.
      remove_accidental_hits: as there, but TensorFlow's default here is to keep them.
      name, partition_strategy, subtract_log_q, key: as there.

    Returns:
      `[N]` float32, the loss of each example in nats.

    Raises:
      ValueError: as `sampled_softmax_loss`.

    References:
      `tf.nn.nce_loss`; Gutmann and Hyvarinen 2010, https://proceedings.mlr.press/v9/gutmann10a.html.
    """
    _check_shapes(weights, biases, labels, inputs, num_classes, num_true, partition_strategy)
    values = _sampled_values(sampled_values, key, labels, num_sampled, num_classes)
    with jax.named_scope(name):
        rows = gather_rows(weights, biases, labels, values.sampled_candidates)
        return nce_loss_of_rows(rows, labels, inputs, values, remove_accidental_hits, subtract_log_q)


def _check_shapes(
    weights: Table,
    biases: Table,
    labels: jax.Array,
    inputs: jax.Array,
    num_classes: int,
    num_true: int,
    partition_strategy: str,
) -> None:
    if partition_strategy != "div":
        raise ValueError(
            "Invalid `partition_strategy`: expected 'div', shards that hold rows one after the other; bring 'mod'"
            f" shards into that order first. Received: {partition_strategy!r}."
        )
    if labels.ndim != 2 or labels.shape[1] != num_true or inputs.ndim != 2 or labels.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"Invalid `labels`, `inputs`: expected shapes [N, {num_true}] ([N, num_true]) and [N, D]."
            f" Received: {labels.shape}, {inputs.shape}."
        )
    for name, table, row in (("weights", weights, inputs.shape[1:]), ("biases", biases, ())):
        shapes = [shard.shape for shard in (table if isinstance(table, Sequence) else (table,))]
        if sum(shape[0] for shape in shapes if shape) != num_classes or any(shape[1:] != row for shape in shapes):
            raise ValueError(f"Invalid `{name}`: expected shape {(num_classes, *row)}. Received: {shapes}.")
    check_ids("labels", labels, num_classes)


def _sampled_values(
    values: SampledValues | None, key: jax.Array | None, labels: jax.Array, num_sampled: int, num_classes: int
) -> SampledValues:
    """Draws candidates where none are given, and checks those that are."""
    if values is None:
        if key is None:
            raise ValueError("Invalid `key`: expected a jax.random.key where `sampled_values` is None. Received: None.")
        return log_uniform_candidate_sampler(key, labels, num_sampled, True, num_classes)
    values = SampledValues(*map(jnp.asarray, values))
    shapes, expected = [value.shape for value in values], [(num_sampled,), labels.shape, (num_sampled,)]
    if shapes != expected:
        raise ValueError(f"Invalid `sampled_values`: expected shapes {expected}. Received: {shapes}.")
    check_ids("sampled_values", values.sampled_candidates, num_classes)
    return values


def _logits(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    values: SampledValues,
    remove_accidental_hits: bool,
    subtract_log_q: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 logits of the true classes `[N, num_true]` and of the candidates `[N, S]`."""
    true_products = inputs[:, None, :].astype(jnp.float32) * rows.true_weights.astype(jnp.float32)
    true_logits = true_products.sum(axis=-1)
    sampled_logits = jnp.matmul(inputs, rows.sampled_weights.T, preferred_element_type=jnp.float32)
    true_logits += rows.true_biases.astype(jnp.float32)
    sampled_biases = rows.sampled_biases.astype(jnp.float32)
    if subtract_log_q:
        true_logits -= jnp.log(values.true_expected_count)
        sampled_biases -= jnp.log(values.sampled_expected_count)
    sampled_logits += sampled_biases[None, :]
    if remove_accidental_hits:
        candidates = jnp.where(last_occurrences(values.sampled_candidates), values.sampled_candidates, -1)
        hits = jnp.any(labels[:, :, None] == candidates[None, None, :], axis=1)
        sampled_logits = jnp.where(hits, FLOAT_MIN, sampled_logits)
    return true_logits, sampled_logits


def sampled_softmax_loss_of_rows(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    sampled_values: SampledValues,
    remove_accidental_hits: bool = True,
    subtract_log_q: bool = True,
) -> jax.Array:
    """`sampled_softmax_loss` on gathered rows, to be differentiated with respect to them alone.

    Args:
      rows: `ClassRows` of the labels and candidates.
      labels: `[N, num_true]` integer.
      inputs: `[N, D]` float.
      sampled_values: what a candidate sampler returned.
      remove_accidental_hits, subtract_log_q: as in `sampled_softmax_loss`.

    Returns:
      `[N]` float32, the loss of each example in nats.
    """
    true_logits, sampled_logits = _logits(rows, labels, inputs, sampled_values, remove_accidental_hits, subtract_log_q)
    # the highest logit is taken away first, as by TensorFlow: the difference of two large numbers has few digits
    highest = jax.lax.stop_gradient(jnp.maximum(true_logits.max(axis=1), sampled_logits.max(axis=1)))
    true_logits, sampled_logits = true_logits - highest[:, None], sampled_logits - highest[:, None]
    total = jnp.exp(true_logits).sum(axis=1) + jnp.exp(sampled_logits).sum(axis=1)
    return jnp.log(total) - jnp.mean(true_logits, axis=1)


def nce_loss_of_rows(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    sampled_values: SampledValues,
    remove_accidental_hits: bool = False,
    subtract_log_q: bool = True,
) -> jax.Array:
    """`nce_loss` on gathered rows; arguments and result as `sampled_softmax_loss_of_rows`'s."""
    true_logits, sampled_logits = _logits(rows, labels, inputs, sampled_values, remove_accidental_hits, subtract_log_q)
    true_losses = jax.nn.softplus(true_logits) - true_logits / labels.shape[1]
    return true_losses.sum(axis=1) + jax.nn.softplus(sampled_logits).sum(axis=1)
