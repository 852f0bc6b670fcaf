"""TensorFlow's sampled losses: sampled softmax and noise-contrastive estimation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxlm.candidate_sampling.samplers import SampledValues, check_classes, log_uniform_candidate_sampler
from jaxlm.errors import InputError, require
from jaxlm.losses.class_rows import ClassRows, Table, gather_rows, nce_loss_of_rows, sampled_softmax_loss_of_rows
from jaxlm.token_ids import as_int32


def sampled_softmax_loss(
    weights: Table,
    biases: Table,
    labels: ArrayLike,
    inputs: ArrayLike,
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

    logit = inputs @ weights.T + biases - log(expected count). For training only: it is not comparable with
    the exact loss.

    Args:
      weights: `[V, D]` float32 or bfloat16, one row per class; or a tuple of contiguous shards of rows.
      biases: `[V]` float32 or bfloat16; or a tuple of shards.
      labels: `[N, num_true]` integer, the true classes.
      inputs: `[N, D]` float32 or bfloat16, the outputs of the last layer.
      num_sampled: number of classes S to sample for the batch.
      num_classes: number of classes V.
      num_true: number of true classes per example.
      sampled_values: result of a candidate sampler; None draws unique log-uniform candidates.
      remove_accidental_hits: whether to mask a candidate that is a label of the example. If it was drawn more
        than once, only its last occurrence is masked, as in TensorFlow.
      seed: must be None; use `key` instead.
      name: name of the operations in a profile.
      partition_strategy: "div", as in TensorFlow 2; "mod" shards are not supported.
      subtract_log_q: whether to correct the logits by the expected counts.
      key: a `jax.random.key`, needed if `sampled_values` is None.

    Returns:
      `[N]` float32, the loss of each example in nats. Logits are accumulated in float32. A traced label that is
      not in [0, V) gives NaN, and no gradient.

    Raises:
      InputError: a shape does not fit, a concrete id is out of range, `sampled_values` and `key` are both
        missing, or an argument is not supported.

    References:
      `tf.nn.sampled_softmax_loss`; Jean et al. 2014, https://arxiv.org/abs/1412.2007, section 3.

    >>> weights, biases = jnp.zeros((50, 8)), jnp.zeros(50)
    >>> labels, hidden = jnp.array([[3], [14]]), jnp.ones((2, 8))
    >>> sampled_softmax_loss(weights, biases, labels, hidden, 10, 50, key=jax.random.key(0)).shape
    (2,)
    """
    require(seed is None, "seed", "None, and a jax.random.key as `key`", seed)
    sizes = num_sampled, num_classes, num_true, partition_strategy
    with jax.named_scope(name):
        valid, gathered = _gather(weights, biases, labels, inputs, sampled_values, key, *sizes)
        losses = sampled_softmax_loss_of_rows(*gathered, remove_accidental_hits, subtract_log_q)
        return jnp.where(valid, losses, jnp.nan)


def nce_loss(
    weights: Table,
    biases: Table,
    labels: ArrayLike,
    inputs: ArrayLike,
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

    The sum of softplus(logit) - logit / num_true over the true classes and of softplus(logit) over the
    candidates, with the logits of `sampled_softmax_loss`.

    Args:
      weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values: as in
        `sampled_softmax_loss`.
      remove_accidental_hits: as there, but off by default, as in TensorFlow.
      name, partition_strategy, subtract_log_q, key: as there.

    Returns:
      `[N]` float32, the loss of each example in nats.

    Raises:
      InputError: as `sampled_softmax_loss`.

    References:
      `tf.nn.nce_loss`; Gutmann and Hyvarinen 2010, https://proceedings.mlr.press/v9/gutmann10a.html.
    """
    sizes = num_sampled, num_classes, num_true, partition_strategy
    with jax.named_scope(name):
        valid, gathered = _gather(weights, biases, labels, inputs, sampled_values, key, *sizes)
        losses = nce_loss_of_rows(*gathered, remove_accidental_hits, subtract_log_q)
        return jnp.where(valid, losses, jnp.nan)


def _gather(
    weights: Table,
    biases: Table,
    labels: ArrayLike,
    inputs: ArrayLike,
    sampled_values: SampledValues | None,
    key: jax.Array | None,
    num_sampled: int,
    num_classes: int,
    num_true: int,
    partition_strategy: str,
) -> tuple[jax.Array, tuple[ClassRows, jax.Array, jax.Array, SampledValues]]:
    """Checks the arguments of a loss, draws candidates if none are given, and gathers the rows that it reads.

    Returns also which examples `[N]` have valid labels alone. The labels of the others are replaced, since a loss of
    NaN that is masked afterwards still has a gradient of NaN.
    """
    labels, inputs = jnp.asarray(as_int32("labels", labels)), jnp.asarray(inputs)
    expected = "'div', contiguous shards of rows ('mod' shards must be reordered first)"
    require(partition_strategy == "div", "partition_strategy", expected, partition_strategy)
    fits = labels.ndim == 2 and labels.shape[1] == num_true
    require(fits, "labels", f"shape [N, {num_true}], with num_true={num_true}", labels.shape)
    fits = inputs.ndim == 2 and inputs.shape[0] == labels.shape[0]
    require(fits, "inputs", f"shape [{labels.shape[0]}, D], one row per example", inputs.shape)
    for name, table, row in (("weights", weights, inputs.shape[1:]), ("biases", biases, ())):
        shapes = [shard.shape for shard in (table if isinstance(table, Sequence) else (table,))]
        fits = sum(shape[0] for shape in shapes if shape) == num_classes and all(shape[1:] == row for shape in shapes)
        require(fits, name, f"shape {(num_classes, *row)}", shapes)
    check_classes("labels", labels, num_classes)
    if sampled_values is None:
        if key is None:
            raise InputError("Invalid `key`: expected a jax.random.key, or `sampled_values`. Received: None.")
        values = log_uniform_candidate_sampler(key, labels, num_sampled, True, num_classes)
    else:
        candidates, *counts = sampled_values
        candidates = jnp.asarray(as_int32("sampled_values", candidates))
        values = SampledValues(candidates, *map(jnp.asarray, counts))
        shapes, fitting = [value.shape for value in values], [(num_sampled,), labels.shape, (num_sampled,)]
        require(shapes == fitting, "sampled_values", f"shapes {fitting}", shapes)
        check_classes("sampled_values", candidates, num_classes)
    valid = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(valid, labels, 0)
    values = values._replace(true_expected_count=jnp.where(valid, values.true_expected_count, 1.0))
    rows = gather_rows(weights, biases, labels, values.sampled_candidates)
    return valid.all(axis=1), (rows, labels, inputs, values)
