"""A block holds the batches of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlocks
from jaxlm.data.batches import shard_batch, train_batch
from jaxlm.parallel.mesh import make_mesh

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.int32)
CONFIG = TrainConfig(  # 23 batches in an epoch
    batch_size=6, sequence_length=5, random_offsets=True, num_sampled=7, compute_dtype="float32"
)


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


def schedule(steps: np.ndarray) -> jax.Array:
    return jnp.float32(0.01) * (1 + steps)


@pytest.mark.parametrize("shape", [None, (1, 1), (3, 2), (2, 4)])
def test_a_block_holds_the_batches_of_its_steps(shape):
    mesh = None if shape is None else make_mesh(*shape)
    blocks = BatchBlocks(TOKENS, CONFIG, mesh)
    at_step = jax.jit(lambda block, step: block.at_step(step))
    for step in (0, 13, 19, 20, 23, 46, 21):  # 23 and 46 begin an epoch
        block = blocks.with_step(step, schedule)
        batch, rate = at_step(block, step)
        expected = shard_batch(train_batch(TOKENS, step, CONFIG), mesh)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
        assert (batch.weights is not None) == (shape == (2, 4))  # six streams on eight devices
        assert bool(batch.starts_epoch) == (step in (0, 23, 46))
        assert rate == schedule(np.float32(step)) and rate.dtype == jnp.float32
        for placed in jax.tree.leaves(block.batches):
            assert len(placed.sharding.device_set) == (1 if mesh is None else mesh.size)
            rows = placed.addressable_shards[0].data.shape[1:2]
            assert placed.ndim == 1 or rows == (-(-6 // (1 if mesh is None else mesh.size)),)


def test_a_block_is_read_once_and_another_schedule_counts_at_once():
    blocks = BatchBlocks(TOKENS, CONFIG, None)
    block = blocks.with_step(3, schedule)
    assert blocks.with_step(BLOCK_STEPS - 1, schedule) is block
    changed = blocks.with_step(7, lambda steps: -schedule(steps))
    np.testing.assert_array_equal(changed.learning_rates, -block.learning_rates)
    jax.tree.map(np.testing.assert_array_equal, changed.batches, block.batches)
