"""The exact softmax cross-entropy over all classes, block by block."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxlm.config import ComputeDtype
from jaxlm.config_checks import require_integer
from jaxlm.errors import require
from jaxlm.losses.blocks import LogSumExp, block_logits, block_start, even_block_size, mask_padding, num_blocks
from jaxlm.matmul import cast_operand, dot_f32, transposed
from jaxlm.parallel.collectives import local_ids, pmax, psum, take_local_rows
from jaxlm.parallel.mesh import Axes
from jaxlm.token_ids import as_int32

KEPT_BYTES = 2**29  # of exponentials that training keeps for its gradient; more of them are computed twice


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
      inputs: `[..., D]` float32 or bfloat16, which is cast to float32.
      weights: `[V, D]` float32 or bfloat16, one row per class.
      labels: `[...]` integer, the true classes. A label that is not in [0, V) gives NaN, and no gradient where its
        loss is masked.
      biases: `[V]` float32 or bfloat16; None for no biases.
      block_size: maximum number of classes in a block; memory is `[block_size, N]`.

    Returns:
      `[...]` float32, the loss of each example in nats.

    Raises:
      InputError: the shapes do not fit each other, labels are not integers, or `block_size` is below 1.

    References:
      `optax.softmax_cross_entropy_with_integer_labels` of the full logits; Wijmans et al. 2024, Cut Your
      Losses, https://arxiv.org/abs/2411.09009, section 4.

    >>> losses = linear_cross_entropy(jnp.ones((2, 5, 3)), jnp.zeros((7, 3)), jnp.zeros((2, 5), int))
    >>> losses.shape, round(float(losses[0, 0]), 4)  # log(7)
    ((2, 5), 1.9459)
    """
    inputs, weights, labels = jnp.asarray(inputs), jnp.asarray(weights), jnp.asarray(as_int32("labels", labels))
    require(weights.ndim == 2 and len(weights) > 0, "weights", "shape [V, D]", weights.shape)
    biases = jnp.zeros(weights.shape[0], weights.dtype) if biases is None else jnp.asarray(biases)
    shape = (*labels.shape, weights.shape[1])
    require(inputs.shape == shape, "inputs", f"shape {shape}, that of the labels and the width D", inputs.shape)
    require(biases.shape == weights.shape[:1], "biases", f"shape {weights.shape[:1]}", biases.shape)
    require_integer("block_size", block_size, 1)
    dtype = jnp.promote_types(jnp.result_type(inputs, weights, biases), jnp.float32)
    inputs, weights, biases = inputs.astype(dtype), weights.astype(dtype), biases.astype(dtype)
    flat = (inputs.reshape(-1, inputs.shape[-1]), weights, labels.reshape(-1), biases)
    return exact_losses(*flat, weights.shape[0], block_size=block_size, kept_bytes=0).reshape(labels.shape)


def exact_losses(
    inputs: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    biases: jax.Array,
    num_classes: int,
    axes: Axes = (),
    dtype: ComputeDtype = "float32",
    block_size: int = 2048,
    kept_bytes: int = KEPT_BYTES,
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
      kept_bytes: maximum size of the exponentials of all logits that are kept for the gradient, in bytes. If they
        need more, the backward pass computes them again.

    Returns:
      `[N]` float32.

    References:
      Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053, section 3.
    """
    biases = mask_padding(biases, num_classes, axes)
    # two blocks or more, for a loop: see `product_dtype`
    block_size = even_block_size(weights.shape[0], min(block_size, -(-weights.shape[0] // 2)))
    plan = _Plan(block_size, axes, dtype, exponential_bytes(len(weights), len(inputs), dtype) <= kept_bytes)
    normalizer, label_logits = _normalizer_and_label_logits(inputs, weights, labels, biases, plan)
    if axes:
        highest = pmax(normalizer, axes)
        normalizer = highest + jnp.log(psum(jnp.exp(normalizer - highest), axes))
        label_logits = psum(label_logits, axes)
    return normalizer - label_logits


def exponential_bytes(num_classes: int, num_examples: int, dtype: ComputeDtype) -> int:
    """Returns the size of the exponentials of all logits, which training keeps up to `KEPT_BYTES`."""
    return num_classes * num_examples * jnp.dtype(dtype).itemsize


class _Plan(NamedTuple):
    """How to compute the losses of a shard."""

    block_size: int
    axes: Axes
    dtype: ComputeDtype
    keeps_exponentials: bool  # for the backward pass, which computes them again otherwise


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalizer_and_label_logits(
    inputs: jax.Array, weights: jax.Array, labels: jax.Array, biases: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-sum-exp of the logits of a shard, and the logits of labels in it, both `[N]`."""
    inputs_t = cast_operand(transposed(inputs), plan.dtype)  # [D, N]: rows @ inputs_t is the fast orientation

    def add_block(block: jax.Array, sums: LogSumExp) -> LogSumExp:
        return sums.add(block_logits(block, weights, biases, inputs_t, plan.block_size, plan.dtype)[2])[0]

    sums = jax.lax.fori_loop(0, num_blocks(len(weights), plan.block_size), add_block, LogSumExp.of_nothing(inputs))
    return sums.normalizer(), _label_logits(inputs, weights, labels, biases, plan.axes)


def _label_logits(inputs: jax.Array, weights: jax.Array, labels: jax.Array, biases: jax.Array, axes: Axes) -> jax.Array:
    label_rows, label_biases = take_local_rows(weights, labels, axes), take_local_rows(biases, labels, axes)
    return jnp.sum(inputs * label_rows, axis=-1) + label_biases


def _forward(
    inputs: jax.Array, weights: jax.Array, labels: jax.Array, biases: jax.Array, plan: _Plan
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    """Computes the outputs, and each example's mean row under the softmax: the gradient of its normalizer."""
    inputs_t = cast_operand(transposed(inputs), plan.dtype)

    def add_block(running: tuple[LogSumExp, jax.Array], block: jax.Array) -> tuple[tuple[LogSumExp, jax.Array], Any]:
        sums, total_rows = running
        _, rows, logits = block_logits(block, weights, biases, inputs_t, plan.block_size, plan.dtype)
        sums, exponentials, factor = sums.add(logits)
        exponentials = cast_operand(exponentials, plan.dtype)
        block_rows = dot_f32(cast_operand(transposed(rows), plan.dtype), exponentials)  # [D, N]
        total_rows = factor[None, :] * total_rows + block_rows
        return (sums, total_rows), (exponentials, sums.highest) if plan.keeps_exponentials else None

    start = LogSumExp.of_nothing(inputs), jnp.zeros_like(inputs.T)
    (sums, total_rows), kept = jax.lax.scan(add_block, start, jnp.arange(num_blocks(len(weights), plan.block_size)))
    mean_rows = (total_rows / sums.total[None, :]).T
    outputs = sums.normalizer(), _label_logits(inputs, weights, labels, biases, plan.axes)
    return outputs, (inputs, weights, labels, biases, outputs[0], mean_rows, kept)


def _backward(
    plan: _Plan, residuals: tuple, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    inputs, weights, labels, biases, normalizer, mean_rows, kept = residuals
    d_normalizer, d_label_logits = cotangents
    num_classes, block_size, axes, dtype = len(weights), plan.block_size, plan.axes, plan.dtype
    inputs_t = cast_operand(transposed(inputs), dtype)

    def add_block(gradients: tuple[jax.Array, jax.Array], xs: tuple) -> tuple[tuple[jax.Array, jax.Array], None]:
        d_weights, d_biases = gradients
        block, kept = xs
        if kept is None:
            logits = block_logits(block, weights, biases, inputs_t, block_size, dtype)[2]
            kept = cast_operand(jnp.exp(logits - normalizer[None, :]), dtype), normalizer
        exponentials, highest = kept  # the gradient of a logit is exponential * scale
        scale = jnp.exp(highest - normalizer) * d_normalizer
        start = block_start(block, block_size, num_classes)

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            value += jax.lax.dynamic_slice_in_dim(total, start, block_size)
            return jax.lax.dynamic_update_slice_in_dim(total, value, start, axis=0)

        d_biases = add(d_biases, (exponentials * scale[None, :]).sum(axis=1))
        d_rows = dot_f32(exponentials, cast_operand(inputs * scale[:, None], dtype))
        return (add(d_weights, d_rows), d_biases), None

    zeros = jnp.zeros_like(weights), jnp.zeros_like(biases)
    (d_weights, d_biases), _ = jax.lax.scan(add_block, zeros, (jnp.arange(num_blocks(num_classes, block_size)), kept))
    indices = local_ids(labels, num_classes, axes)
    d_weights = d_weights.at[indices].add(d_label_logits[:, None] * inputs, mode="drop", wrap_negative_indices=False)
    d_biases = d_biases.at[indices].add(d_label_logits, mode="drop", wrap_negative_indices=False)
    # zeros for an invalid label, whose loss the caller may have masked: 0 * NaN is NaN
    label_rows = weights.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    d_inputs = d_normalizer[:, None] * mean_rows + d_label_logits[:, None] * label_rows
    return d_inputs, d_weights, None, d_biases


_normalizer_and_label_logits.defvjp(_forward, _backward)
