"""Batches and learning rates of several steps, transferred to the devices together.

Copying the arrays of each step alone takes the host longer than a step takes a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.config import TrainConfig
from jaxlm.data.batches import Batch, local_streams, train_batch, weighted
from jaxlm.parallel.mesh import Mesh, pad, padded_streams, place, stream_spec

BLOCK_STEPS = 20


class BatchBlock(NamedTuple):
    """Batches and learning rates of the steps n to n + BLOCK_STEPS - 1, where n is a multiple of BLOCK_STEPS."""

    batches: Batch  # as from `shard_batches`
    learning_rates: jax.Array  # [BLOCK_STEPS] float32

    def at_step(self, step: jax.Array) -> tuple[Batch, jax.Array]:
        """Returns the batch and the learning rate of a step; inside of `jax.jit`."""
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, step % BLOCK_STEPS, keepdims=False), self)


class BatchBlocks:
    """The blocks of a training text of ids `[N]`, of which it holds one. Each process reads its own streams."""

    def __init__(self, tokens: np.ndarray, config: TrainConfig, mesh: Mesh | None):
        self.tokens, self.config, self.mesh = tokens, config, mesh
        self.streams = local_streams(config.batch_size, mesh)
        self.first = -1
        self.schedule: Callable[[np.ndarray], jax.Array] | None = None
        self.block: BatchBlock

    def with_step(self, step: int, schedule: Callable[[np.ndarray], jax.Array]) -> BatchBlock:
        """Returns the block with a step. `schedule` gives the learning rates of steps; a new one applies at once."""
        first = step - step % BLOCK_STEPS
        if (self.first, self.schedule) != (first, schedule):
            self.block = self._block(first, schedule)
            self.first, self.schedule = first, schedule
        return self.block

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step on the host, with all streams."""
        return train_batch(self.tokens, step, self.config)

    def shapes(self) -> BatchBlock:
        """Returns a block with the shape, dtype and sharding of each array instead of the array."""
        replicated = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
        rates: Any = jax.ShapeDtypeStruct((BLOCK_STEPS,), jnp.float32, sharding=replicated)

        def shape(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=None if self.mesh is None else leaf.sharding)

        return jax.tree.map(shape, self._block(0, lambda steps: rates))

    def _block(self, first: int, schedule: Callable[[np.ndarray], jax.Array]) -> BatchBlock:
        steps = np.arange(first, first + BLOCK_STEPS, dtype=np.int32)
        batches = [train_batch(self.tokens, int(step), self.config, self.streams) for step in steps]
        return BatchBlock(shard_batches(batches, self.mesh), schedule(steps))


def shard_batches(batches: Sequence[Batch], mesh: Mesh | None) -> Batch:
    """Copies batches from the host to the devices, each array of all of them at once: `[steps, batch_size, ...]`."""
    size = padded_streams(len(batches[0].inputs), mesh)

    def stack(*leaves: np.ndarray | bool) -> np.ndarray:
        return np.stack([pad(leaf, size) if np.ndim(leaf) else leaf for leaf in leaves])

    stacked = jax.tree.map(stack, *(weighted(batch, mesh) for batch in batches))
    if mesh is None:
        return jax.device_put(stacked)
    of_streams = PartitionSpec(None, *stream_spec(mesh))
    return jax.tree.map(lambda leaf: place(leaf, mesh, of_streams if leaf.ndim > 1 else PartitionSpec()), stacked)
