"""`RunLogger`: what a run evaluates, saves, writes down and shows while it trains."""

import logging
import math
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxlm.batches import Batch
from jaxlm.checkpoint import Checkpoints, Progress
from jaxlm.errors import InputError
from jaxlm.evaluation import Evaluation, evaluate
from jaxlm.run import RunConfig, append_metrics, drop_metrics_after, save_config
from jaxlm.schedule import StepEstimate, learning_rate_schedule
from jaxlm.step import exact_and_training_loss
from jaxlm.train_state import TrainState

LOG_EVERY = 20  # steps averaged in a line of metrics.jsonl

logger = logging.getLogger(__name__)


class RunLogger:
    """Evaluates a run, and writes its checkpoints, metrics and messages.

    Args:
      directory: of the run.
      config: of the run; its `total_steps` may be estimated later.
      checkpoints: of the run.
      valid: `[N]` ids of the validation text.
      first_step: steps done before this process.
      seconds: time they took.
      progress: whether to show progress bars.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        checkpoints: Checkpoints,
        valid: np.ndarray,
        first_step: int,
        seconds: float,
        progress: bool,
    ):
        assert config.train is not None and config.schedule is not None
        self.directory, self.config, self.checkpoints, self.valid = directory, config, checkpoints, valid
        self.first_step, self.progress, self.schedule = first_step, progress, config.schedule
        self.words_per_step = config.train.batch_size * config.train.sequence_length
        self.learning_rate = jax.jit(learning_rate_schedule(self.schedule, config.total_steps))
        self.length = StepEstimate(self.schedule, first_step)
        self.logged = (first_step, seconds)  # at the last line of metrics.jsonl
        drop_metrics_after(directory, first_step)
        self.events = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def progress_bar(self) -> tqdm:
        """Returns the bar of the steps."""
        total = self.config.total_steps or None
        return tqdm(total=total, initial=self.first_step, unit=" steps", disable=not self.progress)

    def estimate_length(self, step: int, seconds: float) -> None:
        """Fixes the number of steps when the decay begins, if `minutes` is the length, and writes it down."""
        if self.config.total_steps:
            return
        total_steps = self.length.total_steps(step, seconds)
        if total_steps:
            self.config = self.config._replace(total_steps=total_steps)
            self.learning_rate = jax.jit(learning_rate_schedule(self.schedule, total_steps))
            save_config(self.directory, self.config)

    def log(self, step: int, **values: float) -> None:
        """Writes values to metrics.jsonl and TensorBoard."""
        append_metrics(self.directory, {"step": step, **values})
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def log_training(self, step: int, losses: list[float], learning_rate: float, seconds: float, bar: tqdm) -> None:
        """Writes and shows the mean of some losses, and the speed since the last time."""
        loss = float(np.mean(losses))
        last_step, last_seconds = self.logged
        speed = self.words_per_step * (step - last_step) / (seconds - last_seconds)
        self.logged = (step, seconds)
        self.log(step, train_loss=loss, learning_rate=learning_rate, seconds=seconds, words_per_second=speed)
        bar.total = self.config.total_steps or int(step * self.schedule.minutes * 60 / seconds)
        bar.set_postfix_str(f"training loss {loss:.3f}, {speed:,.0f} words/s")

    def evaluate(self, state: TrainState) -> Evaluation:
        """Computes the exact loss on the validation text."""
        return evaluate(state.model, self.valid, max_tokens=self.schedule.eval_tokens, progress=self.progress)

    def evaluate_and_save(self, state: TrainState, step: int, seconds: float, next_batch: Batch) -> Evaluation:
        """Evaluates, writes a checkpoint, and reports, also what sampling hides on the next batch."""
        evaluation = self.evaluate(state)
        exact, training = map(float, exact_and_training_loss(state, next_batch))
        require_finite(evaluation.loss, step, self.directory)
        self.checkpoints.save(step, state, Progress(seconds, evaluation.loss))
        values = {"valid_loss": evaluation.loss, "valid_perplexity": evaluation.perplexity}
        self.log(step, **values, exact_train_loss=exact, loss_gap=exact - training)
        logger.info(
            f"step {step}: validation perplexity {evaluation.perplexity:.2f}"
            f" (exact, {evaluation.num_tokens:,} words, loss {evaluation.loss:.4f};"
            f" the training loss is {exact - training:.3f} below the exact one)"
        )
        return evaluation


def require_finite(loss: float, step: int, directory: Path) -> float:
    """Returns a loss, or ends the run with `InputError` before a loss that is not finite can harm a checkpoint."""
    if not math.isfinite(loss):
        raise InputError(
            f"The loss is {loss} at step {step}: lower the `learning_rate` or the `clip_norm`."
            f" Earlier checkpoints in {directory} are intact."
        )
    return loss
