"""The exact softmax loss over all classes, block by block."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.sampling import FLOAT_MIN


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
