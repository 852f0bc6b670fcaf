"""The training loop: steps, evaluations, checkpoints, metrics, and resuming a run."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxlm.config import LENGTHS, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlocks
from jaxlm.data.corpus import Corpus, fingerprints
from jaxlm.errors import InputError, require
from jaxlm.files import PathLike
from jaxlm.inference.perplexity import Evaluation
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh, mesh_shape
from jaxlm.parallel.processes import Decision, Decisions, require_same
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.compilation import Compilation
from jaxlm.runs.deferred_losses import DeferredLosses
from jaxlm.runs.directory import RunConfig, corpus_of_run, load_config
from jaxlm.runs.initial_state import starting_state
from jaxlm.runs.locked_run import locked_run, with_dtype_of_run
from jaxlm.runs.memory import require_memory
from jaxlm.runs.progress import Progress
from jaxlm.runs.run_logger import LOG_EVERY, RunLogger
from jaxlm.runs.schedule import known_total_steps
from jaxlm.runs.stop_signals import StopSignals
from jaxlm.token_ids import check_ids
from jaxlm.training.settings import require_vocab_size, resolve_config
from jaxlm.training.state import TrainState

logger = logging.getLogger(__name__)


def train(
    corpus: Corpus,
    directory: PathLike,
    model_config: ModelConfig,
    train_config: TrainConfig = TrainConfig(),  # noqa: B008
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
    *,
    use_word_vectors: bool = True,
    data: PathLike = "",
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Evaluation | None:
    """Trains a model on a corpus, or resumes a run.

    A run that was killed and resumed ends with the same bits as one that was not. SIGINT and SIGTERM finish the
    step, write a checkpoint and return; a second one stops at once. Damaged checkpoints are passed over. Messages go
    to the logger "jaxlm".

    Args:
      corpus: as from `load_corpus`.
      directory: run directory, made if it does not exist.
      model_config: its `vocab_size` is the size of the corpus' vocabulary.
      train_config: settings of a training step.
      schedule: learning rate, length and evaluations.
      use_word_vectors: whether embedding and softmax rows of a new model start at vectors counted from the training
        text, in which words with the same neighbors are close together; otherwise at random.
      data: directory of the corpus, written to config.json for `jaxlm evaluate` and `resume`; by default the one
        that `load_corpus` opened.
      progress: whether to show progress bars.
      mesh: as from `jaxlm.make_mesh`, to train on several devices; a run may be resumed on another one. Each of
        several processes calls this (after `jaxlm.initialize_processes`) with the same arguments.

    Returns:
      The exact evaluation at the end, on `eval_tokens` words; None if the run was stopped.

    Raises:
      InputError: the settings do not fit the run or the corpus, there is too little memory, or training diverges.
    """
    vocab_size = len(corpus.vocabulary)
    for name in ("train", "valid"):
        check_ids(f"corpus.{name}", getattr(corpus, name), vocab_size)
    require_vocab_size(model_config, vocab_size)
    directory = Path(directory)
    train_config = resolve_config(with_dtype_of_run(directory, train_config), vocab_size)
    total_steps = known_total_steps(schedule, train_config, corpus.train.size)
    data = Path(data).resolve() if data else _directory_of(corpus)
    texts = fingerprints(corpus)
    config = RunConfig(model_config, train_config, schedule, str(data), total_steps, texts, use_word_vectors)
    alone = jax.process_count() == 1
    require(mesh is not None or alone, "mesh", "one of the devices of all processes, as from make_mesh", mesh)
    same = config._replace(data=""), mesh_shape(mesh)
    require_same(repr(same).encode(), "Give all processes the same corpus, settings and shards.")

    def create() -> TrainState:
        model = LanguageModel(model_config, corpus.log_unigram, rngs=nnx.Rngs(train_config.seed), mesh=mesh)
        return TrainState.create(model, train_config, corpus.counts)

    abstract = jax.eval_shape(create)  # raises the errors of creation before anything is written
    require_memory(model_config, train_config, mesh)
    with locked_run(directory, config, corpus.vocabulary) as config:
        blocks, checkpoints = BatchBlocks(corpus.train, train_config, mesh), Checkpoints(directory)
        with closing(Compilation(abstract, blocks, corpus.valid, schedule.eval_tokens)) as compilation:
            step, state, resumed = starting_state(checkpoints, abstract, corpus, config, mesh)
            run = RunLogger(directory, config, checkpoints, compilation, corpus, step, resumed, progress, mesh)
            with closing(run.metrics):
                return _run_steps(run, state, blocks, resumed)


def resume(
    directory: PathLike, *, data: PathLike = "", progress: bool = True, mesh: Mesh | None = None, **changes: Any
) -> Evaluation | None:
    """Resumes a run without repeating its settings.

    Args:
      directory: of the run.
      data: directory of the corpus, if it was moved.
      progress: whether to show progress bars.
      mesh: as for `train`.
      changes: fields of `ScheduleConfig` to change, such as `minutes` or `learning_rate`; None keeps a field.

    Returns:
      As `train`.

    Raises:
      InputError: as `train`, or the run has not been trained yet.
    """
    config = load_config(Path(directory))
    if config.train is None or config.schedule is None or not (data or config.data):
        command = f"jaxlm train DATA --out {shlex.quote(str(directory))}"
        raise InputError(f"{directory} was not trained on a prepared corpus yet; run `{command}` first.")
    known = {field.name for field in dataclasses.fields(ScheduleConfig)}
    require(changes.keys() <= known, "changes", f"fields of ScheduleConfig, {sorted(known)}", sorted(changes))
    changed = {name: value for name, value in changes.items() if value is not None}
    lengths = [name for name in LENGTHS if name in changed]
    if lengths:  # one length replaces another
        require(any(changed[name] for name in lengths), lengths[0], "a length above 0", 0)
        fits = changed.get("epochs") or not changed.get("epoch_decay", config.schedule.epoch_decay)
        expected = "a length in `epochs`, as the learning rate of this run falls by epochs"
        require(bool(fits), lengths[0], expected, changed[lengths[0]])
        changed = dict.fromkeys(LENGTHS, 0) | changed
    schedule = dataclasses.replace(config.schedule, **changed)
    corpus = corpus_of_run(directory, config, data)
    return train(
        corpus,
        directory,
        config.model,
        config.train,
        schedule,
        use_word_vectors=config.use_word_vectors,
        data=data or config.data,
        progress=progress,
        mesh=mesh,
    )


def _directory_of(corpus: Corpus) -> PathLike:
    """Returns the directory of a corpus; "" if its arrays are in memory."""
    filename = getattr(corpus.train, "filename", None)
    return Path(filename).parent if filename else ""


def _run_steps(run: RunLogger, state: TrainState, blocks: BatchBlocks, resumed: Progress) -> Evaluation | None:
    """Runs the steps from the first one of this process to the last one of the run."""
    step, schedule, decisions, decision = run.first_step, run.schedule, Decisions(run.mesh), Decision()
    if step >= run.config.total_steps > 0:
        logger.info("the run already has its %d steps; give it a greater length to continue it", step)
        return run.evaluate(state)
    evaluation, losses = None, DeferredLosses(run.record_loss, int(np.asarray(state.skipped)[1]))
    with StopSignals() as stop, run.progress_bar() as bar:
        bar.set_postfix_str("compiling the training step")
        compiled_step = run.compilation.step.result()
        watch = Stopwatch(resumed.seconds)
        while not decision.stop and not (run.config.total_steps and step >= run.config.total_steps):
            # one step; its loss is fetched while the next one runs
            block = blocks.with_step(step, run.learning_rates)
            state, loss = compiled_step(state, block)
            step += 1
            losses.add(loss, step)

            # stop, save and length: the same decision in all processes
            total_steps = run.estimate_length(step, watch.seconds())
            decision = decisions.exchange(Decision(stop.requested, run.save_interval_passed(), total_steps))
            run.fix_length(decision.total_steps)

            # a line of metrics
            is_last = step == run.config.total_steps
            if is_last:
                losses.fetch()
            if step % LOG_EVERY == 0 or is_last:
                learning_rate = float(np.asarray(block.learning_rates)[(step - 1) % BLOCK_STEPS])
                run.log_training(step, learning_rate, watch.seconds(), bar)
            bar.update()

            # an exact evaluation, or just a checkpoint; neither counts as training time
            evaluates = step % schedule.eval_every == 0 or is_last
            if evaluates or run.should_save(step, decision.save):
                losses.fetch()
                with watch.paused():
                    so_far = Progress(watch.seconds())
                    if evaluates:
                        evaluation, state = run.evaluate_and_save(step, state, so_far, blocks.batch(step))
                    else:
                        run.save(step, state, so_far)
        if step != run.config.total_steps and step != run.saved_step:
            losses.fetch()
            run.save(step, state, Progress(watch.seconds()))
        run.finish(step)
    if step == run.config.total_steps:
        return evaluation
    how = run.resume_command if jax.process_count() == 1 else "the same command in all processes"
    logger.info("stopped at step %d; resume with: %s", step, how)
    return None


class Stopwatch:
    """Seconds of training, evaluations not counted."""

    def __init__(self, seconds: float):
        self.start = time.perf_counter() - seconds
        self.stopped_at: float | None = None

    def seconds(self) -> float:
        """Returns the seconds so far."""
        return (self.stopped_at or time.perf_counter()) - self.start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the watch for a while."""
        self.stopped_at = time.perf_counter()
        yield
        self.start += time.perf_counter() - self.stopped_at
        self.stopped_at = None
