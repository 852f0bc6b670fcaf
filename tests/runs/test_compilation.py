"""Programs are compiled from shapes alone, and a run compiles few programs, each of them once."""

import re
import shutil
import threading
from collections import Counter
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlocks
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.reports.report import write_report
from jaxlm.runs import compilation, loop
from jaxlm.runs.compilation import Compilation
from jaxlm.runs.loop import resume, train
from jaxlm.runs.schedule import jit_learning_rates
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.int32)
CONFIG = TrainConfig(batch_size=6, sequence_length=5, num_sampled=7, compute_dtype="float32")  # 23 batches in an epoch
SCHEDULE = ScheduleConfig(learning_rate=0.01, warmup_steps=30)


@pytest.fixture
def all_devices(monkeypatch):
    monkeypatch.undo()


def create(mesh=None) -> TrainState:
    return TrainState.create(LanguageModel(ModelConfig(31, 5, 7), rngs=nnx.Rngs(0), mesh=mesh), CONFIG)


def start_compilation(mesh=None) -> Compilation:
    return Compilation(jax.eval_shape(lambda: create(mesh)), BatchBlocks(TOKENS, CONFIG, mesh), TOKENS, 0)


@pytest.fixture
def ahead(monkeypatch):
    """Compiles the programs of evaluations and checkpoints ahead of time, as on an accelerator."""
    monkeypatch.setattr(compilation, "compiles_ahead", lambda: True)


@pytest.fixture
def all_programs_first(ahead, monkeypatch):
    """Lets a run wait for all programs before its first step, so that none of them is left to its first call."""

    class Waiting(Compilation):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.pool.shutdown()

    monkeypatch.setattr(loop, "Compilation", Waiting)


@contextmanager
def compiled_programs(caplog):
    """Yields a dictionary that receives, for each thread, the number of compilations of each program."""
    jax.clear_caches()
    caplog.clear()
    jax.config.update("jax_log_compiles", True)  # in all threads
    counts: dict[str, Counter] = {}
    try:
        yield counts
    finally:
        jax.config.update("jax_log_compiles", False)
    for record in caplog.records:
        if found := re.match(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()):
            counts.setdefault(record.threadName, Counter())[found[1]] += 1


@pytest.mark.parametrize("shape", [None, (2, 2)])
def test_a_compiled_step_on_blocks_has_the_bits_of_train_step_on_batches(all_devices, shape):
    mesh = None if shape is None else make_mesh(*shape)
    schedule, blocks, results = jit_learning_rates(SCHEDULE, 0, mesh), BatchBlocks(TOKENS, CONFIG, mesh), []
    compiled_step = start_compilation(mesh).step.result()
    for is_compiled in (False, True):
        state, losses = create(mesh), []
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


IN_BACKGROUND = {"step_in_block": 1, "exact_loss": 1, "exact_and_training_loss": 1, "_all_finite": 1}


def test_a_run_and_its_report_compile_few_programs(corpus, corpus_dir, tmp_path, all_programs_first, caplog):
    model, schedule = ModelConfig(len(corpus.vocabulary), 7, 11), ScheduleConfig(steps=40, eval_every=20)
    with compiled_programs(caplog) as counts:
        train(corpus, tmp_path, model, TrainConfig(batch_size=4), schedule, data=corpus_dir, progress=False)
        write_report(tmp_path)
    in_front = counts.pop(threading.main_thread().name)
    assert list(counts.values()) == [IN_BACKGROUND]
    for name in ("create", "learning_rates", "_outputs", "_next_words"):
        assert in_front[name] == 1, in_front
    assert not in_front & Counter(IN_BACKGROUND)
    assert len(IN_BACKGROUND) + in_front.total() <= 15, in_front


@pytest.mark.parametrize("shape", [None, pytest.param((2, 2), marks=pytest.mark.slow)])
def test_a_resumed_run_compiles_its_programs_once(all_devices, run_dir, tmp_path, all_programs_first, caplog, shape):
    shutil.copytree(run_dir, tmp_path / "run")
    with compiled_programs(caplog) as counts:
        resume(tmp_path / "run", steps=80, progress=False, mesh=None if shape is None else make_mesh(*shape))
    in_front = counts.pop(threading.main_thread().name)
    assert list(counts.values()) == [IN_BACKGROUND]
    assert not in_front & Counter(IN_BACKGROUND), in_front


def test_an_error_of_the_compilation_ends_the_run(corpus, tmp_path, all_programs_first, monkeypatch):
    def fail(*_):
        raise RuntimeError("no program")

    monkeypatch.setattr(compilation, "lower_evaluation", fail)
    model, schedule = ModelConfig(len(corpus.vocabulary), 7, 11), ScheduleConfig(steps=1)
    with pytest.raises(RuntimeError, match="no program"):
        train(corpus, tmp_path, model, TrainConfig(batch_size=4), schedule, progress=False)


def test_a_program_that_is_not_begun_is_left_to_its_first_call(ahead, monkeypatch):
    has_begun, may_end, lower = threading.Event(), threading.Event(), compilation.lower_evaluation

    def lower_slowly(*arguments):
        has_begun.set()
        assert may_end.wait(60)
        return lower(*arguments)

    monkeypatch.setattr(compilation, "lower_evaluation", lower_slowly)
    programs = start_compilation()
    assert has_begun.wait(60)
    evaluation, sampling_gap, not_finite = programs.others.values()
    programs.wait("sampling gap")  # while the program before it is compiled
    programs.close()
    assert sampling_gap.cancelled() and not_finite.cancelled() and evaluation.running()
    may_end.set()
    programs.wait("evaluation")
    assert evaluation.done()


def test_a_processor_compiles_the_step_alone_ahead(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    programs = start_compilation()
    assert programs.step.result() and not programs.others
    programs.close()
