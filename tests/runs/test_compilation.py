"""The training step is compiled from shapes alone, and a run compiles few programs, each of them once."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlocks
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.reports.report import write_report
from jaxlm.runs.compilation import start_compilation
from jaxlm.runs.loop import train
from jaxlm.runs.schedule import jit_learning_rates
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.int32)
CONFIG = TrainConfig(batch_size=6, sequence_length=5, num_sampled=7, compute_dtype="float32")  # 23 batches in an epoch
SCHEDULE = ScheduleConfig(learning_rate=0.01, warmup_steps=30)


@pytest.fixture
def all_devices(monkeypatch):
    monkeypatch.undo()


@pytest.mark.parametrize("shape", [None, (2, 2)])
def test_a_compiled_step_on_blocks_has_the_bits_of_train_step_on_batches(all_devices, shape):
    mesh = None if shape is None else make_mesh(*shape)

    def create() -> TrainState:
        return TrainState.create(LanguageModel(ModelConfig(31, 5, 7), rngs=nnx.Rngs(0), mesh=mesh), CONFIG)

    schedule, blocks, results = jit_learning_rates(SCHEDULE, 0, mesh), BatchBlocks(TOKENS, CONFIG, mesh), []
    compiled_step = start_compilation(jax.eval_shape(create), blocks).result()
    for is_compiled in (False, True):
        state, losses = create(), []
        for step in range(BLOCK_STEPS + 5):  # into the second block and the second epoch
            block = blocks.with_step(step, schedule)
            if is_compiled:
                state, loss = compiled_step(state, block)
            else:
                rate = np.asarray(block.learning_rates)[step % BLOCK_STEPS]
                state, loss = train_step(state, blocks.batch(step), rate)
            losses.append(float(loss))
        results.append((losses, state.tables, state.dense, state.opt_state, state.carry))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_run_and_its_report_compile_few_programs(corpus, corpus_dir, tmp_path, caplog):
    jax.clear_caches()
    jax.config.update("jax_log_compiles", True)  # in all threads
    try:
        model, schedule = ModelConfig(len(corpus.vocabulary), 7, 11), ScheduleConfig(steps=40, eval_every=20)
        train(corpus, tmp_path, model, TrainConfig(batch_size=4), schedule, data=corpus_dir, progress=False)
        write_report(tmp_path)
    finally:
        jax.config.update("jax_log_compiles", False)
    programs = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    for name in ("step_in_block", "create", "exact_loss", "exact_and_training_loss", "_outputs", "_next_words"):
        assert programs.count(name) == 1, programs
    assert len(programs) <= 21, programs
