"""The sampled softmax loss of TensorFlow and the exact softmax loss, block by block."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.sampling import SampledValues, log_uniform_candidate_sampler

FLOAT_MIN = np.finfo(np.float32).min  # what TensorFlow adds to the logit of an accidental hit


class ClassRows(NamedTuple):
    """The softmax rows a sampled loss reads: those of the labels and those of the candidates."""

    true_weights: jax.Array  # [N, num_true, D]
    true_biases: jax.Array  # [N, num_true]
    sampled_weights: jax.Array  # [S, D]
    sampled_biases: jax.Array  # [S]


def gather_rows(weights: jax.Array, biases: jax.Array, labels: jax.Array, candidates: jax.Array) -> ClassRows:
    """Gathers rows of `weights` `[V, D]` and `biases` `[V]` for labels `[N, num_true]` and candidates `[S]`."""
    return ClassRows(weights[labels], biases[labels], weights[candidates], biases[candidates])


def sampled_softmax_loss(
    weights: jax.Array,
    biases: jax.Array,
    labels: jax.Array,
    inputs: jax.Array,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: SampledValues | None = None,
    remove_accidental_hits: bool = True,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Computes the sampled softmax loss: softmax cross-entropy over true and sampled classes.

    logit = inputs @ weights.T + biases - log(expected count); a training loss only, not comparable
    with the exact loss.

    Args:
      weights: `[V, D]` float, one row a class.
      biases: `[V]` float.
      labels: `[N, num_true]` integer, the true classes.
      inputs: `[N, D]` float, what the last layer puts out.
      num_sampled: number of classes S to sample for the batch.
      num_classes: number of classes V.
      num_true: number of true classes an example has.
      sampled_values: what a candidate sampler returned; None draws log-uniform, unique candidates.
      remove_accidental_hits: whether a candidate that is a label of the example is left out of it.
      key: a `jax.random.key`, needed where `sampled_values` is None.

    Returns:
      `[N]` float32, the loss of each example in nats.

    Raises:
      ValueError: a shape does not fit, or both `sampled_values` and `key` are missing.

    References:
      `tf.nn.sampled_softmax_loss`; Jean et al. 2014, https://arxiv.org/abs/1412.2007, section 3.
    """
    if labels.ndim != 2 or labels.shape[1] != num_true or labels.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"Invalid `labels`: expected shape [{inputs.shape[0]}, {num_true}] ([N, num_true])."
            f" Received: {labels.shape}."
        )
    if weights.shape != (num_classes, inputs.shape[1]) or biases.shape != (num_classes,):
        raise ValueError(
            f"Invalid `weights`, `biases`: expected shapes [{num_classes}, {inputs.shape[1]}] ([V, D]) and"
            f" [{num_classes}]. Received: {weights.shape}, {biases.shape}."
        )
    if sampled_values is None:
        if key is None:
            raise ValueError("Invalid `key`: expected a jax.random.key where `sampled_values` is None. Received: None.")
        sampled_values = log_uniform_candidate_sampler(key, labels, num_sampled, True, num_classes)
    rows = gather_rows(weights, biases, labels, sampled_values.sampled_candidates)
    return sampled_softmax_loss_of_rows(rows, labels, inputs, sampled_values, remove_accidental_hits)


def sampled_softmax_loss_of_rows(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    sampled_values: SampledValues,
    remove_accidental_hits: bool = True,
) -> jax.Array:
    """`sampled_softmax_loss` on gathered rows, to be differentiated with respect to them alone.

    Args:
      rows: `ClassRows` of the labels and candidates.
      labels: `[N, num_true]` integer.
      inputs: `[N, D]` float.
      sampled_values: what a candidate sampler returned.
      remove_accidental_hits: as in `sampled_softmax_loss`.

    Returns:
      `[N]` float32, the loss of each example in nats.
    """
    candidates, true_expected_count, sampled_expected_count = sampled_values
    true_logits = jnp.sum(inputs[:, None, :] * rows.true_weights, axis=-1) + rows.true_biases  # [N, num_true]
    true_logits -= jnp.log(true_expected_count)
    adjustment = rows.sampled_biases - jnp.log(sampled_expected_count)
    sampled_logits = inputs @ rows.sampled_weights.T + adjustment[None, :]  # [N, S]
    if remove_accidental_hits:
        hits = jnp.any(labels[:, :, None] == candidates[None, None, :], axis=1)
        sampled_logits = jnp.where(hits, FLOAT_MIN, sampled_logits)
    normalizer = jnp.logaddexp(jax.nn.logsumexp(true_logits, axis=1), jax.nn.logsumexp(sampled_logits, axis=1))
    return normalizer - jnp.mean(true_logits, axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def softmax_loss(
    weights: jax.Array, biases: jax.Array, labels: jax.Array, inputs: jax.Array, block_size: int = 2048
) -> jax.Array:
    """Computes the exact softmax cross-entropy without ever holding `[N, V]` logits.

    loss = logsumexp(inputs @ weights.T + biases) - logit of the label, over blocks of classes with a
    running log-sum-exp; the backward pass computes each block's logits again.

    Args:
      weights: `[V, D]` float32, one row a class.
      biases: `[V]` float32.
      labels: `[N]` integer, the true class.
      inputs: `[N, D]` float32.
      block_size: number of classes in a block; memory is `[block_size, N]`.

    Returns:
      `[N]` float32, the loss of each example in nats.

    References:
      `tf.nn.sparse_softmax_cross_entropy_with_logits` of the full logits; Wijmans et al. 2024,
      Cut Your Losses, https://arxiv.org/abs/2411.09009, section 4.
    """
    return _softmax_loss_forward(weights, biases, labels, inputs, block_size)[0]


def _block_logits(
    block: jax.Array, weights: jax.Array, biases: jax.Array, inputs_t: jax.Array, block_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the start of a block, its rows `[block_size, D]` and its logits `[block_size, N]`.

    The last block is moved up to end at V (a ragged one would copy the table); what it shares with
    the one before is masked.
    """
    first = block * block_size
    start = jnp.minimum(first, weights.shape[0] - block_size)
    rows = jax.lax.dynamic_slice_in_dim(weights, start, block_size)
    logits = rows @ inputs_t + jax.lax.dynamic_slice_in_dim(biases, start, block_size)[:, None]
    repeated = start + jnp.arange(block_size) < first
    return start, rows, jnp.where(repeated[:, None], FLOAT_MIN, logits)


def _softmax_loss_forward(
    weights: jax.Array, biases: jax.Array, labels: jax.Array, inputs: jax.Array, block_size: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    num_classes = weights.shape[0]
    block_size = min(block_size, num_classes)
    inputs_t = inputs.T  # [D, N]: rows @ inputs_t is the fast orientation of the product

    def add_block(block: jax.Array, running: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        highest, total = running
        logits = _block_logits(block, weights, biases, inputs_t, block_size)[2]
        new_highest = jnp.maximum(highest, logits.max(axis=0))
        total = total * jnp.exp(highest - new_highest) + jnp.exp(logits - new_highest[None, :]).sum(axis=0)
        return new_highest, total

    start = (jnp.full(inputs.shape[0], FLOAT_MIN), jnp.zeros(inputs.shape[0]))
    highest, total = jax.lax.fori_loop(0, -(-num_classes // block_size), add_block, start)
    normalizer = highest + jnp.log(total)
    label_logits = jnp.sum(inputs * weights[labels], axis=-1) + biases[labels]
    return normalizer - label_logits, (weights, biases, labels, inputs, normalizer)


def _softmax_loss_backward(
    block_size: int, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    weights, biases, labels, inputs, normalizer = residuals
    num_classes = weights.shape[0]
    block_size = min(block_size, num_classes)
    inputs_t = inputs.T

    def add_block(block: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        d_weights, d_biases, d_inputs_t = gradients
        start, rows, logits = _block_logits(block, weights, biases, inputs_t, block_size)
        d_logits = jnp.exp(logits - normalizer[None, :]) * cotangent[None, :]  # [block_size, N]

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            value += jax.lax.dynamic_slice_in_dim(total, start, block_size)
            return jax.lax.dynamic_update_slice_in_dim(total, value, start, axis=0)

        d_inputs_t += rows.T @ d_logits
        return add(d_weights, d_logits @ inputs), add(d_biases, d_logits.sum(axis=1)), d_inputs_t

    zeros = (jnp.zeros_like(weights), jnp.zeros_like(biases), jnp.zeros_like(inputs_t))
    gradients = jax.lax.fori_loop(0, -(-num_classes // block_size), add_block, zeros)
    d_weights, d_biases, d_inputs_t = gradients
    d_weights = d_weights.at[labels].add(-cotangent[:, None] * inputs)
    d_biases = d_biases.at[labels].add(-cotangent)
    return d_weights, d_biases, None, d_inputs_t.T - cotangent[:, None] * weights[labels]


softmax_loss.defvjp(_softmax_loss_forward, _softmax_loss_backward)
