"""The training loop: steps, evaluations, checkpoints, metrics, and resuming a run."""

import dataclasses
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from flax import nnx

from jaxlm.batches import train_batch
from jaxlm.checkpoint import Checkpoints, Progress
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.corpus import Corpus, PathLike
from jaxlm.evaluation import Evaluation
from jaxlm.model import LanguageModel
from jaxlm.run import RunConfig, open_run
from jaxlm.run_logger import LOG_EVERY, RunLogger, require_finite
from jaxlm.schedule import known_total_steps
from jaxlm.step import train_step
from jaxlm.token_ids import check_ids
from jaxlm.train_state import TrainState

logger = logging.getLogger(__name__)


def train(
    corpus: Corpus,
    directory: PathLike,
    model_config: ModelConfig,
    train_config: TrainConfig = TrainConfig(),  # noqa: B008
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
    *,
    data: PathLike = "",
    progress: bool = True,
) -> Evaluation | None:
    """Trains a model on a corpus, or resumes a run.

    A run that was killed and resumed ends with the same bits as one that was not. SIGINT and SIGTERM finish the
    step, write a checkpoint and return. Messages go to the logger "jaxlm".

    Args:
      corpus: as from `load_corpus`.
      directory: run directory, made if it does not exist.
      model_config: its `vocab_size` is the size of the corpus' vocabulary.
      train_config: what a step does.
      schedule: learning rate, length and evaluations.
      data: directory of the corpus, noted in config.json for `jaxlm evaluate`.
      progress: whether to show progress bars.

    Returns:
      The exact evaluation at the end, on `eval_tokens` words; None if the run was stopped.

    Raises:
      InputError: the settings do not fit the run or the corpus, or the loss is no longer finite.
    """
    for name in ("train", "valid"):
        check_ids(f"corpus.{name}", getattr(corpus, name), len(corpus.vocabulary))
    total_steps = known_total_steps(schedule, train_config, corpus.train.size)
    config = RunConfig(model_config, train_config, schedule, str(data), total_steps)

    def create() -> TrainState:
        model = LanguageModel(model_config, corpus.vocabulary.log_unigram, rngs=nnx.Rngs(train_config.seed))
        return TrainState.create(model, train_config, corpus.vocabulary.counts)

    abstract = jax.eval_shape(create)  # raises what creating it would, before anything is written
    directory = Path(directory)
    config = open_run(directory, config, corpus.vocabulary)
    checkpoints = Checkpoints(directory)
    step, seconds = checkpoints.latest_step() or 0, 0.0
    if checkpoints.latest_step() is None:
        state = TrainState.from_corpus(corpus, model_config, train_config)
    elif step == 0:
        state = _imported_state(checkpoints, corpus, model_config, train_config)
    else:
        state, seconds = checkpoints.restore(step, abstract), checkpoints.progress(step).seconds
        logger.info("%s: resuming from step %d", directory, step)
    run = RunLogger(directory, config, checkpoints, corpus.valid, step, seconds, progress)
    return _run_steps(run, state, corpus, seconds)


def _imported_state(
    checkpoints: Checkpoints, corpus: Corpus, model_config: ModelConfig, config: TrainConfig
) -> TrainState:
    """Returns the state of an imported model before its first step, with its optimizer state if it has one."""
    state = TrainState.create(checkpoints.restore_model(0, model_config), config, corpus.vocabulary.counts)
    opt_state = checkpoints.restore_optimizer(0, model_config, config)
    return state if opt_state is None else dataclasses.replace(state, opt_state=opt_state)


def _run_steps(run: RunLogger, state: TrainState, corpus: Corpus, seconds: float) -> Evaluation | None:
    """Runs the steps from the first one of this process to the last one of the run."""
    config, step = run.config.train, run.first_step
    assert config is not None and run.config.schedule is not None
    if step >= run.config.total_steps > 0:
        logger.info("the run already has its %d steps; raise `steps`, `epochs` or `minutes` to continue it", step)
        return run.evaluate(state)
    evaluation, watch, losses = None, Stopwatch(seconds), LateLosses(run.directory)
    with StopSignals() as stop, run.progress_bar() as bar:
        while not stop.requested and not (run.config.total_steps and step >= run.config.total_steps):
            # one step; its loss is fetched while the next one runs
            batch = train_batch(corpus.train, step, config.batch_size, config.sequence_length)
            learning_rate = run.learning_rate(step)
            state, loss = train_step(state, batch, learning_rate)
            step += 1
            losses.add(loss, step)

            # if the clock decides on the length of the run, it may do so now
            seconds = watch.seconds()
            run.estimate_length(step, seconds)

            # a line of metrics
            if step % LOG_EVERY == 0 and losses.fetched:
                run.log_training(step, losses.take(), float(learning_rate), seconds, bar)
            bar.update()

            # an exact evaluation and a checkpoint, which do not count as training time
            if step % run.config.schedule.eval_every == 0 or step == run.config.total_steps:
                losses.fetch()
                with watch.paused():
                    next_batch = train_batch(corpus.train, step, config.batch_size, config.sequence_length)
                    evaluation = run.evaluate_and_save(state, step, watch.seconds(), next_batch)
    if step == run.config.total_steps:
        return evaluation
    losses.fetch()
    if step != run.checkpoints.latest_step():
        run.checkpoints.save(step, state, Progress(watch.seconds(), None))
    logger.info("stopped at step %d; run the same command again to resume", step)
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


class LateLosses:
    """Losses of steps. Each is fetched when the next one is added, so that no step waits for it."""

    def __init__(self, directory: Path):
        self.directory = directory  # to name in errors
        self.pending: tuple[jax.Array, int] | None = None
        self.fetched: list[float] = []

    def add(self, loss: jax.Array, step: int) -> None:
        """Adds the loss of a step, and fetches the one before."""
        self.fetch()
        self.pending = (loss, step)

    def fetch(self) -> None:
        """Waits for the pending loss, if there is one.

        Raises:
          InputError: it is not finite, so the run ends before that can harm a checkpoint.
        """
        if self.pending:
            loss, step = self.pending
            self.pending = None
            self.fetched.append(require_finite(float(loss), step, self.directory))

    def take(self) -> list[float]:
        """Returns the losses fetched since the last call."""
        losses, self.fetched = self.fetched, []
        return losses


class StopSignals:
    """Turns SIGINT and SIGTERM into a request that is looked at between steps, so that no step is cut in half."""

    def __enter__(self) -> "StopSignals":
        self.requested = False
        self.before = {name: signal.signal(name, self._request) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, *_: object) -> None:
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
