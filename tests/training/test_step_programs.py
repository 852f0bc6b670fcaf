"""The compiled program of a training step: precision, memory, and that it is compiled once."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import quick_if
from step_helpers import MODEL, TRAIN, batches, make_model

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlock
from jaxlm.data.batches import Batch
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import ACCELERATOR_UNROLL
from jaxlm.training.state import TrainState
from jaxlm.training.step import jit_train_step, step_in_block, train_step


@pytest.mark.parametrize("change", [{}, {"loss": "full"}, {"model": {"projection_size": 6}}])
def test_bfloat16_is_asked_of_every_product_forward_and_backward(change, monkeypatch):
    change = dict(change)
    model = make_model(dataclasses.replace(MODEL, **{"dropout_rates": ()} | change.pop("model", {})))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TRAIN, compute_dtype=dtype, **change)
        state = TrainState.create(model, config)
        text = jit_train_step.trace(state, batches(1)[0], 0.1).lower(lowering_platforms=("cuda",)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        rounded = ["lhs_precision_type = bf16" in line and "accumulation_type = f32" in line for line in lines]
        assert len(lines) >= 6 and rounded == [dtype == "bfloat16"] * len(lines)
    jit_train_step.clear_cache()  # other tests trace the same arguments for the processor


def test_a_precision_that_the_user_asks_of_jax_is_kept():
    with jax.default_matmul_precision("highest"):
        lowered = jit_train_step.lower(TrainState.create(make_model(), TRAIN), batches(1)[0], 0.1)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    assert lines and all("HIGHEST" in line for line in lines)


def abstract_state(vocab_size: int, optimizer: str = "adam") -> TrainState:
    model = ModelConfig(vocab_size, embedding_size=256, hidden_size=1024)
    train = TrainConfig(optimizer=optimizer, batch_size=32)
    return jax.eval_shape(lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0)), train))


@pytest.mark.parametrize("optimizer", quick_if(lambda name: name == "adam", [("adam",), ("adagrad",), ("sgd",)]))
def test_no_table_is_copied(optimizer):
    ids = jax.ShapeDtypeStruct((32, 35), jnp.int32)
    temporaries = []
    for vocab_size in (200_000, 1_000_000):
        state = abstract_state(vocab_size, optimizer)
        memory = jit_train_step.lower(state, Batch(ids, ids, False), 0.1).compile().memory_analysis()
        smallest = state.tables["embedding"].size * 4
        assert memory.temp_size_in_bytes < smallest
        assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # all of the state is in place
        temporaries.append(memory.temp_size_in_bytes)
    assert temporaries[1] < 1.02 * temporaries[0]  # flat in V


def test_step_two_does_not_compile_again():
    state = TrainState.create(make_model(), TRAIN)
    for step, batch in enumerate(batches(3)):
        learning_rate = [0.1, np.float32(0.05), jnp.float32(0.01)][step]
        state, _ = train_step(state, batch._replace(starts_epoch=step == 1), learning_rate)
        if step == 0:
            compiled = jit_train_step._cache_size()
    assert jit_train_step._cache_size() == compiled


PROGRAMS = """
import hashlib
import numpy as np
from flax import nnx
from jaxlm import Batch, LanguageModel, ModelConfig, TrainConfig, TrainState, make_mesh
from jaxlm.data.batches import shard_batch
from jaxlm.training.step import jit_train_step

ids = np.zeros((4, 3), np.int32)
for mesh in (None, make_mesh(2, 2)):
    model = LanguageModel(ModelConfig(20, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    state = TrainState.create(model, TrainConfig(batch_size=4, sequence_length=3, num_sampled=5), mesh=mesh)
    program = jit_train_step.lower(state, shard_batch(Batch(ids, ids), mesh), np.float32(0.1)).as_text()
    print(hashlib.sha256(program.encode()).hexdigest())
"""


def test_every_process_makes_the_same_program():
    """The next process finds it among the compiled ones, and the processes of a mesh tell each other the same."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    programs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAMS],
            env=os.environ | {"PYTHONHASHSEED": seed, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")  # by which Python orders sets
    ]
    assert len(programs[0]) == 2 and programs[0] == programs[1]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_on_a_gpu_tables_are_updated_in_place_without_waiting_for_the_host(optimizer):
    """The program that is lowered for CUDA; it was not run on one."""
    config = dataclasses.replace(TRAIN, optimizer=optimizer, compute_dtype="bfloat16", clip_norm=1.0, num_sampled=500)
    state = jax.eval_shape(
        lambda: TrainState.create(LanguageModel(dataclasses.replace(MODEL, vocab_size=5003), rngs=nnx.Rngs(0)), config)
    )
    ids = jax.ShapeDtypeStruct((BLOCK_STEPS, 3, 2 * ACCELERATOR_UNROLL + 1), jnp.int32)
    starts, rates = (jax.ShapeDtypeStruct((BLOCK_STEPS,), dtype) for dtype in (jnp.bool, jnp.float32))
    block = BatchBlock(Batch(ids, ids, starts), rates)
    text = step_in_block.trace(state, block).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))
    assert "callback" not in text and "infeed" not in text and "outfeed" not in text
    # a conditional waits for the host, unless its condition is the platform, which is a constant
    by_platform = set(re.findall(r'(%\w+) = "stablehlo.case"\(%c', text))
    choices = set(re.findall(r'"stablehlo.case"\((%\w+)', text))
    assert "stablehlo.if" not in text and all(index in by_platform or index.startswith("%c") for index in choices)
    assert text.count("stablehlo.while") == 2 * len(MODEL.lstms)  # over the time steps, forward and backward
    operations = [
        line for line in text.splitlines() if re.search(r"= \"?stablehlo\.\w+.*tensor<5003(x\d+)?xf32>$", line)
    ]
    assert not operations  # that make a whole table, such as a dense gradient; scatters end in a line of their own
    assert text.count("stablehlo.scatter") >= 3
