"""The training loop: steps, evaluations, checkpoints, metrics, and going on where a run was stopped."""

import dataclasses
import json
import math
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxlm.checkpoint import (
    CONFIG_FILE,
    LENGTH_FIELDS,
    METRICS_FILE,
    Checkpoints,
    Progress,
    RunConfig,
    load_config,
    load_vocabulary,
    read_metrics,
    save_config,
)
from jaxlm.config import InputError, ModelConfig, TrainConfig, partial_path, write_text
from jaxlm.cooccurrence import word_vectors
from jaxlm.data import VOCABULARY_FILE, Batch, Corpus, batches_per_epoch, train_batch
from jaxlm.evaluation import Evaluation, evaluate
from jaxlm.model import LanguageModel
from jaxlm.train import TrainState, exact_and_training_loss, learning_rate, train_step
from jaxlm.vocabulary import Vocabulary

LOG_EVERY = 20  # steps a line of metrics.jsonl is the mean of
WARM_UP = 3  # steps of a process that say nothing of its speed


def open_run(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> RunConfig:
    """Makes a run directory, or checks that an existing one is of the same run and takes up its length.

    Raises:
      InputError: the directory holds something else, or a run of another config or vocabulary.
    """
    if not directory.exists() or not any(directory.iterdir()):
        partial = partial_path(directory)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        vocabulary.save(partial / VOCABULARY_FILE)
        save_config(partial, config)
        partial.rename(directory)  # a run that is killed here is none, or whole
        return config
    if not (directory / CONFIG_FILE).exists():
        raise InputError(f"{directory} is not empty and no run (it has no {CONFIG_FILE}); name another with --out.")
    old = load_config(directory)
    fixed = dataclasses.replace(config.train, **{name: getattr(old.train, name) for name in LENGTH_FIELDS})
    if (directory / "checkpoints" / "0").exists():  # weights alone so far: any settings of training will do
        fixed = old.train
    for ours, theirs in ((config.model, old.model), (fixed, old.train)):
        for name, value in dataclasses.asdict(ours).items():
            before = getattr(theirs, name)
            if value != before:
                raise InputError(
                    f"{directory} is a run with {name}={before!r}, not {value!r}; name another with --out,"
                    " or give the same settings to go on with it."
                )
    if load_vocabulary(directory, old.model) != vocabulary:
        raise InputError(f"{directory} is a run on another vocabulary; name another with --out.")
    lengths = ("steps", "epochs", "minutes")
    same_length = all(getattr(config.train, name) == getattr(old.train, name) for name in lengths)
    config = config._replace(total_steps=old.total_steps if same_length else config.total_steps)
    save_config(directory, config)
    return config


def known_total_steps(config: TrainConfig, num_tokens: int) -> int:
    """The length of a training in steps, or 0 where the clock will tell (`minutes`)."""
    batches = batches_per_epoch(num_tokens, config.batch_size, config.sequence_length)  # raises if there is none
    if config.minutes:
        return 0
    return config.steps or math.ceil((config.epochs or 1) * batches)


def fit(
    corpus: Corpus,
    directory: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    data: str = "",
    progress: bool = True,
) -> Evaluation | None:
    """Trains a model on a corpus, or goes on with a run that was stopped.

    A run that was killed and goes on ends with the same bits as one that was not. SIGINT and SIGTERM
    finish the step, write a checkpoint and return.

    Args:
      corpus: as from `load_corpus`.
      directory: of the run; made where it does not exist.
      model_config: `vocab_size` is that of the corpus.
      config: one of its `steps`, `epochs` and `minutes` is the length; one epoch where all are 0.
      data: the corpus' directory, kept in config.json for `jaxlm evaluate`.
      progress: whether to show progress bars.

    Returns:
      The exact evaluation at the end, on `eval_tokens` words; None where the run was stopped.

    Raises:
      InputError: the settings do not fit the run or the corpus, or the loss is no longer finite.
    """
    tokens = corpus.parts["train"]
    new = RunConfig(model_config, config, data, known_total_steps(config, tokens.size))

    def create(vectors: np.ndarray | None) -> TrainState:
        model = LanguageModel(model_config, corpus.vocabulary.log_unigram, vectors, rngs=nnx.Rngs(config.seed))
        return TrainState.create(model, config, np.exp(corpus.vocabulary.log_unigram))

    abstract = jax.eval_shape(lambda: create(None))  # raises what create would, before anything is written
    run = _Run(directory, open_run(directory, new, corpus.vocabulary), corpus.parts["valid"], progress)
    step = run.checkpoints.latest_step()
    if step is None:
        state, seconds, step = create(_count_vectors(tokens, model_config) if config.word_vectors else None), 0.0, 0
    elif step == 0:  # a model to begin with, such as an imported one
        model = run.checkpoints.restore_model(step, model_config)
        state, seconds = TrainState.create(model, config, np.exp(corpus.vocabulary.log_unigram)), 0.0
        opt_state = run.checkpoints.restore_optimizer(step, model_config, config)
        state = state if opt_state is None else dataclasses.replace(state, opt_state=opt_state)
    else:
        state, seconds = run.checkpoints.restore(step, abstract), run.checkpoints.progress(step).seconds
        print(f"{directory}: going on from step {step}")
    run.begin_at(step)
    return _steps(run, state, tokens, step, seconds)


def _count_vectors(tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    tqdm.write("counting which words stand beside each other, for the rows to start at")
    return word_vectors(tokens, config.vocab_size, config.embedding_size)


def _steps(run: "_Run", state: TrainState, tokens: np.ndarray, step: int, seconds: float) -> Evaluation | None:
    """Runs steps from `step` to the end of the training, fetching each loss while the next step runs."""
    config = run.config.train
    batches = batches_per_epoch(tokens.size, config.batch_size, config.sequence_length)
    evaluation, pending = None, None
    losses: list[float] = []
    start = time.perf_counter() - seconds
    if step >= run.config.total_steps > 0:
        print(f"the run has its {step} steps already; give a longer --steps, --epochs or --minutes to go on")
        return run.evaluate(state)
    bar = tqdm(total=run.config.total_steps or None, initial=step, unit=" steps", disable=not run.progress)
    with _StopSignals() as stop, bar:
        while not stop.asked and (not run.config.total_steps or step < run.config.total_steps):
            if step % batches == 0:
                state = dataclasses.replace(state, carry=state.model.initial_carry(config.batch_size))
            batch = train_batch(tokens, step, config.batch_size, config.sequence_length)
            rate = learning_rate(config, step, run.config.total_steps)
            state, loss = train_step(state, batch.inputs, batch.labels, np.float32(rate))
            if pending is not None:
                losses.append(run.fetch(pending, step))
            pending, step = loss, step + 1
            seconds = time.perf_counter() - start
            run.fix_length(step, seconds)
            if step % LOG_EVERY == 0 and losses:
                run.log_training(step, losses, rate, seconds, bar)
                losses = []
            bar.update()
            if step % config.eval_every == 0 or step == run.config.total_steps:
                losses.append(run.fetch(pending, step))
                pending = None
                seconds = time.perf_counter() - start
                following = train_batch(tokens, step, config.batch_size, config.sequence_length)
                evaluation = run.evaluate_and_save(state, step, seconds, following)
                start = time.perf_counter() - seconds  # evaluation is not counted
    if step == run.config.total_steps:
        return evaluation
    if pending is not None:
        run.fetch(pending, step)
    if step != run.checkpoints.latest_step():
        run.checkpoints.save(state, Progress(seconds, None))
    print(f"stopped at step {step}; the same command goes on from there")
    return None


class _StopSignals:
    """Turns SIGINT and SIGTERM into a question to ask between steps, so that no step is cut in half."""

    def __enter__(self) -> "_StopSignals":
        self.asked = False
        self.before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)


class _Run:
    """Where a training writes what it finds out."""

    def __init__(self, directory: Path, config: RunConfig, valid: np.ndarray, progress: bool):
        self.directory, self.config, self.valid, self.progress = directory, config, valid, progress
        self.checkpoints = Checkpoints(directory)
        self.first_step = 0  # of this process
        self.warm = (0, 0.0)  # step and seconds from which the speed is measured
        self.logged: tuple[int, float] | None = None  # those of the last line of metrics.jsonl

    def begin_at(self, step: int) -> None:
        """Drops what a killed run logged after its last checkpoint; those steps come again."""
        rows = [row for row in read_metrics(self.directory) if row["step"] <= step]
        self.first_step = step
        write_text(self.directory / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        self.events = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

    def fetch(self, loss: jax.Array | float, step: int) -> float:
        """Waits for a loss; one that is not finite ends the run before it can harm a checkpoint."""
        loss = float(loss)
        if not math.isfinite(loss):
            raise InputError(
                f"The loss is {loss} at step {step}: lower --learning-rate or --clip-norm."
                f" The checkpoints in {self.directory} are from before."
            )
        return loss

    def log(self, step: int, **values: float) -> None:
        with (self.directory / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def log_training(self, step: int, losses: list[float], rate: float, seconds: float, bar: tqdm) -> None:
        loss = float(np.mean(losses))
        words = self.config.train.batch_size * self.config.train.sequence_length
        last_step, last_seconds = self.logged or (step - LOG_EVERY, 0.0)
        speed = words * (step - last_step) / (seconds - last_seconds)
        self.logged = (step, seconds)
        self.log(step, train_loss=loss, learning_rate=rate, seconds=seconds, words_per_second=speed)
        if not self.config.total_steps:  # the clock will tell: estimate
            bar.total = int(step * self.config.train.minutes * 60 / seconds)
        bar.set_postfix_str(f"training loss {loss:.3f}, {speed:,.0f} words/s")

    def fix_length(self, step: int, seconds: float) -> None:
        """Where the clock decides, fixes the number of steps when the decay begins, and writes it down."""
        config = self.config.train
        if self.config.total_steps:
            return
        if step == self.first_step + WARM_UP:  # the steps before hold the compilation
            self.warm = (step, seconds)
        limit = config.minutes * 60
        if seconds >= limit * (1.0 - config.decay_fraction) and step > self.first_step + WARM_UP:
            speed = (step - self.warm[0]) / (seconds - self.warm[1])
            self.config = self.config._replace(total_steps=step + max(1, int((limit - seconds) * speed)))
            save_config(self.directory, self.config)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Computes the exact loss on the validation text."""
        return evaluate(state.model, self.valid, max_tokens=self.config.train.eval_tokens, progress=self.progress)

    def evaluate_and_save(self, state: TrainState, step: int, seconds: float, following: Batch) -> Evaluation:
        """Evaluates, writes a checkpoint and tells the user, also what sampling hides on the batch that follows."""
        evaluation = self.evaluate(state)
        exact, sampled = map(float, exact_and_training_loss(state, following.inputs, following.labels))
        self.fetch(evaluation.loss, step)
        self.checkpoints.save(state, Progress(seconds, evaluation.loss))
        values = {"valid_loss": evaluation.loss, "valid_perplexity": evaluation.perplexity}
        self.log(step, **values, exact_train_loss=exact, loss_gap=exact - sampled)
        tqdm.write(
            f"step {step}: validation perplexity {evaluation.perplexity:.2f}"
            f" (exact, {evaluation.num_tokens:,} words, loss {evaluation.loss:.4f};"
            f" the training loss is {exact - sampled:.3f} below the exact one)"
        )
        return evaluation
