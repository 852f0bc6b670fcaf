"""The logits of a linear layer, block by block over its classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ComputeDtype
from jaxlm.matmul import cast_operand, dot_f32
from jaxlm.parallel.collectives import local_rows
from jaxlm.parallel.mesh import Axes

FLOAT_MIN = np.finfo(np.float32).min


def mask_padding(biases: jax.Array, num_classes: int, axes: Axes) -> jax.Array:
    """Returns the biases `[R]` of a device's rows, with `FLOAT_MIN` for padding, the rows from `num_classes` on."""
    num_rows = biases.shape[0] * (jax.lax.axis_size(axes) if axes else 1)
    if num_rows == num_classes:
        return biases
    return jnp.where(local_rows(jnp.arange(num_rows) < num_classes, axes), biases, FLOAT_MIN)


class LogSumExp(NamedTuple):
    """A running log-sum-exp, highest + log(total), of the logits of N examples."""

    highest: jax.Array
    total: jax.Array

    @classmethod
    def of_nothing(cls, inputs: jax.Array) -> "LogSumExp":
        return cls(jnp.full_like(inputs[:, 0], FLOAT_MIN), jnp.zeros_like(inputs[:, 0]))

    def add(self, logits: jax.Array) -> tuple["LogSumExp", jax.Array, jax.Array]:
        """Adds logits `[block_size, N]`. Returns also exp(logits - new highest), and the factor of earlier ones."""
        highest = jnp.maximum(self.highest, logits.max(axis=0))
        factor = jnp.exp(self.highest - highest)
        exponentials = jnp.exp(logits - highest[None, :])
        return LogSumExp(highest, self.total * factor + exponentials.sum(axis=0)), exponentials, factor

    def normalizer(self) -> jax.Array:
        return self.highest + jnp.log(self.total)


def num_blocks(num_classes: int, block_size: int) -> int:
    """Returns the number of blocks of classes."""
    return -(-num_classes // block_size)


def even_block_size(num_classes: int, block_size: int) -> int:
    """Returns the size of equal blocks, as few as those of `block_size`: the last one is as large as the others."""
    return -(-num_classes // num_blocks(num_classes, block_size))


def block_start(block: jax.Array, block_size: int, num_classes: int) -> jax.Array:
    """Returns the first class of a block: the last block ends at V, because a ragged one would copy the table."""
    return jnp.minimum(block * block_size, num_classes - block_size)


def block_logits(
    block: jax.Array,
    weights: jax.Array,
    biases: jax.Array,
    inputs_t: jax.Array,
    block_size: int,
    dtype: ComputeDtype = "float32",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the start of a block, its rows `[block_size, D]` and its logits `[block_size, N]`.

    The logits of classes that the last block shares with the one before are masked.
    """
    start = block_start(block, block_size, weights.shape[0])
    rows = jax.lax.dynamic_slice_in_dim(weights, start, block_size)
    block_biases = jax.lax.dynamic_slice_in_dim(biases, start, block_size)
    logits = dot_f32(cast_operand(rows, dtype), inputs_t) + block_biases[:, None]
    repeated = start + jnp.arange(block_size) < block * block_size
    return start, rows, jnp.where(repeated[:, None], FLOAT_MIN, logits)
