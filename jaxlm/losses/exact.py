"""The exact softmax cross-entropy over all classes, block by block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxlm.config import ComputeDtype
from jaxlm.errors import require
from jaxlm.matmul import cast_operand, dot_f32, transposed
from jaxlm.parallel.collectives import local_ids, local_rows, pmax, psum, take_local_rows
from jaxlm.parallel.mesh import Axes

FLOAT_MIN = np.finfo(np.float32).min


def linear_cross_entropy(
    inputs: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    *,
    biases: ArrayLike | None = None,
    block_size: int = 2048,
) -> jax.Array:
    """Computes the exact softmax cross-entropy of a linear layer in blocks of classes.

    loss = logsumexp(inputs @ weights.T + biases) - logit of the label, over blocks of classes with a
    running log-sum-exp. The backward pass computes each block's logits again.

    Args:
      inputs: `[..., D]` float32.
      weights: `[V, D]` float32, one row per class.
      labels: `[...]` integer, the true classes; a label that is not in [0, V) gives NaN.
      biases: `[V]` float32; None for no biases.
      block_size: maximum number of classes in a block; memory is `[block_size, N]`.

    Returns:
      `[...]` float32, the loss of each example in nats.

    Raises:
      InputError: the shapes do not fit each other.

    References:
      `optax.softmax_cross_entropy_with_integer_labels` of the full logits; Wijmans et al. 2024, Cut Your
      Losses, https://arxiv.org/abs/2411.09009, section 4.

    >>> losses = linear_cross_entropy(jnp.ones((2, 5, 3)), jnp.zeros((7, 3)), jnp.zeros((2, 5), int))
    >>> losses.shape, round(float(losses[0, 0]), 4)  # log(7)
    ((2, 5), 1.9459)
    """
    inputs, weights, labels = jnp.asarray(inputs), jnp.asarray(weights), jnp.asarray(labels)
    biases = jnp.zeros(weights.shape[0], weights.dtype) if biases is None else jnp.asarray(biases)
    require(weights.ndim == 2, "weights", "shape [V, D]", weights.shape)
    shape = (*labels.shape, weights.shape[1])
    require(inputs.shape == shape, "inputs", f"shape {shape}, that of the labels and the width D", inputs.shape)
    require(biases.shape == weights.shape[:1], "biases", f"shape {weights.shape[:1]}", biases.shape)
    flat = (inputs.reshape(-1, inputs.shape[-1]), weights, labels.reshape(-1), biases)
    return exact_losses(*flat, weights.shape[0], block_size=block_size).reshape(labels.shape)


def exact_losses(
    inputs: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    biases: jax.Array,
    num_classes: int,
    axes: Axes = (),
    dtype: ComputeDtype = "float32",
    block_size: int = 2048,
) -> jax.Array:
    """Computes `linear_cross_entropy` of classes whose rows are sharded along axes of a mesh.

    Args:
      inputs: `[N, D]` float32, the same along the axes.
      weights, biases: the shard of a device, `[R, D]` and `[R]` float32.
      labels: `[N]` integer, the true classes; a label outside all shards gives the logit 0.
      num_classes: number of classes V; rows from there on are padding.
      axes: axes along which the rows are sharded.
      dtype: data type of the operands of the products.
      block_size: maximum number of classes in a block, of which there are two or more.

    Returns:
      `[N]` float32.

    References:
      Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053, section 3.
    """
    biases = mask_padding(biases, num_classes, axes)
    # two blocks or more, for a loop: see `product_dtype`
    block_size = min(block_size, -(-weights.shape[0] // 2))
    normalizer, label_logits = _normalizer_and_label_logits(inputs, weights, labels, biases, block_size, axes, dtype)
    if axes:
        highest = pmax(normalizer, axes)
        normalizer = highest + jnp.log(psum(jnp.exp(normalizer - highest), axes))
        label_logits = psum(label_logits, axes)
    return normalizer - label_logits


def mask_padding(biases: jax.Array, num_classes: int, axes: Axes) -> jax.Array:
    """Returns the biases `[R]` of a device's rows, with `FLOAT_MIN` for padding, the rows from `num_classes` on."""
    num_rows = biases.shape[0] * (jax.lax.axis_size(axes) if axes else 1)
    if num_rows == num_classes:
        return biases
    return jnp.where(local_rows(jnp.arange(num_rows) < num_classes, axes), biases, FLOAT_MIN)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalizer_and_label_logits(
    inputs: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    biases: jax.Array,
    block_size: int,
    axes: Axes,
    dtype: ComputeDtype,
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-sum-exp of the logits of a shard, and the logits of labels in it, both `[N]`."""
    return _forward(inputs, weights, labels, biases, block_size, axes, dtype)[0]


def block_logits(
    block: jax.Array,
    weights: jax.Array,
    biases: jax.Array,
    inputs_t: jax.Array,
    block_size: int,
    dtype: ComputeDtype = "float32",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the start of a block, its rows `[block_size, D]` and its logits `[block_size, N]`.

    The last block is shifted to end at V, because a ragged one would copy the table. Classes that it shares
    with the block before are masked.
    """
    first = block * block_size
    start = jnp.minimum(first, weights.shape[0] - block_size)
    rows = jax.lax.dynamic_slice_in_dim(weights, start, block_size)
    block_biases = jax.lax.dynamic_slice_in_dim(biases, start, block_size)
    logits = dot_f32(cast_operand(rows, dtype), inputs_t) + block_biases[:, None]
    repeated = start + jnp.arange(block_size) < first
    return start, rows, jnp.where(repeated[:, None], FLOAT_MIN, logits)


def _forward(
    inputs: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    biases: jax.Array,
    block_size: int,
    axes: Axes,
    dtype: ComputeDtype,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    num_classes = weights.shape[0]
    inputs_t = cast_operand(transposed(inputs), dtype)  # [D, N]: rows @ inputs_t is the fast orientation

    def add_block(block: jax.Array, running: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        highest, total = running
        logits = block_logits(block, weights, biases, inputs_t, block_size, dtype)[2]
        new_highest = jnp.maximum(highest, logits.max(axis=0))
        total = total * jnp.exp(highest - new_highest) + jnp.exp(logits - new_highest[None, :]).sum(axis=0)
        return new_highest, total

    start = (jnp.full_like(inputs[:, 0], FLOAT_MIN), jnp.zeros_like(inputs[:, 0]))
    highest, total = jax.lax.fori_loop(0, -(-num_classes // block_size), add_block, start)
    normalizer = highest + jnp.log(total)
    label_rows, label_biases = take_local_rows(weights, labels, axes), take_local_rows(biases, labels, axes)
    label_logits = jnp.sum(inputs * label_rows, axis=-1) + label_biases
    return (normalizer, label_logits), (inputs, weights, labels, biases, normalizer)


def _backward(
    block_size: int,
    axes: Axes,
    dtype: ComputeDtype,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    inputs, weights, labels, biases, normalizer = residuals
    d_normalizer, d_label_logits = cotangents
    num_classes = weights.shape[0]
    operand, inputs_t = cast_operand(inputs, dtype), cast_operand(transposed(inputs), dtype)

    def add_block(block: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        d_weights, d_biases, d_inputs_t = gradients
        start, rows, logits = block_logits(block, weights, biases, inputs_t, block_size, dtype)
        d_logits = jnp.exp(logits - normalizer[None, :]) * d_normalizer[None, :]  # [block_size, N]

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            value += jax.lax.dynamic_slice_in_dim(total, start, block_size)
            return jax.lax.dynamic_update_slice_in_dim(total, value, start, axis=0)

        d_biases = add(d_biases, d_logits.sum(axis=1))
        d_logits = cast_operand(d_logits, dtype)
        d_inputs_t += dot_f32(cast_operand(transposed(rows), dtype), d_logits)
        return add(d_weights, dot_f32(d_logits, operand)), d_biases, d_inputs_t

    zeros = (jnp.zeros_like(weights), jnp.zeros_like(biases), jnp.zeros_like(inputs.T))
    gradients = jax.lax.fori_loop(0, -(-num_classes // block_size), add_block, zeros)
    d_weights, d_biases, d_inputs_t = gradients
    indices = local_ids(labels, num_classes, axes)
    d_weights = d_weights.at[indices].add(d_label_logits[:, None] * inputs, mode="drop")
    d_biases = d_biases.at[indices].add(d_label_logits, mode="drop")
    return d_inputs_t.T + d_label_logits[:, None] * take_local_rows(weights, labels, axes), d_weights, None, d_biases


_normalizer_and_label_logits.defvjp(_forward, _backward)
