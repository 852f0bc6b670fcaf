"""The compiled step on eight devices: what they send each other, and what each holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from flax import nnx
from helpers import quick_if
from jax.sharding import NamedSharding

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh, padded_streams, stream_spec
from jaxlm.training.state import TrainState
from jaxlm.training.state_sharding import sharded_shapes
from jaxlm.training.step import jit_train_step


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


def compiled_step(shape: tuple[int, int] | None, vocab_size: int, **change):
    """Compiles a step of the model in the README, without its arrays."""
    mesh = None if shape is None else make_mesh(*shape)
    config = TrainConfig(**{"compute_dtype": "float32"} | change)
    model = ModelConfig(vocab_size)
    state = jax.eval_shape(lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0), mesh=mesh), config))
    sizes = padded_streams(config.batch_size, mesh), config.sequence_length
    if mesh is None:
        ids = jax.ShapeDtypeStruct(sizes, jnp.int32)
    else:
        ids = jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=NamedSharding(mesh, stream_spec(mesh)))
    return jit_train_step.lower(sharded_shapes(state), Batch(ids, ids, False), np.float32(0.1)).compile()


@pytest.mark.parametrize(
    ("shape", "count", "megabytes"),
    quick_if(lambda shape, *_: shape == (2, 4), [((2, 4), 21, 52), ((1, 8), 15, 55), ((8, 1), 6, 50)]),
)
def test_no_table_travels_and_no_device_holds_more_than_its_share(shape, count, megabytes):
    vocab_size = 200_000
    program, alone = compiled_step(shape, vocab_size), compiled_step(None, vocab_size)
    found = collectives(program.as_text())
    assert 0 < len(found) <= count
    assert sum(collective.wire for collective in found) < megabytes * 1e6  # 37 of them are the LSTM's gradient
    shard = vocab_size // shape[1] * 256 * 4  # of the smaller table
    lstm = 1024 * 4096 * 4
    for collective in found:
        assert all(size == lstm or size < shard / 4 for size in collective.sizes), collective
    memory, before = program.memory_analysis(), alone.memory_analysis()
    assert memory.temp_size_in_bytes < before.temp_size_in_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # all of the state is in place
    dense = 4 * 3 * (1024 + 256 + 1) * 4096  # the LSTM, its moments
    share = (before.argument_size_in_bytes - dense) / shape[1] + dense
    assert memory.argument_size_in_bytes < 1.01 * share
