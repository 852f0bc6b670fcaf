"""`RunLogger`: evaluation, checkpoints, metrics and progress during training."""

import logging
import math
import shlex
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxlm.data.batches import Batch, shard_batch
from jaxlm.data.corpus import Corpus, unigram_loss
from jaxlm.errors import InputError
from jaxlm.inference.perplexity import DIVERGED, Evaluation, evaluate
from jaxlm.parallel.mesh import Mesh, mesh_shape
from jaxlm.parallel.processes import is_first
from jaxlm.runs.averaging import AveragingTrigger
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.compilation import Compilation
from jaxlm.runs.deferred_losses import MAX_SKIPPED
from jaxlm.runs.directory import RunConfig, save_config
from jaxlm.runs.finite import not_finite
from jaxlm.runs.metrics import MetricsLog
from jaxlm.runs.progress import Progress
from jaxlm.runs.schedule import StepEstimate, jit_learning_rates
from jaxlm.training.batch_losses import exact_and_training_loss
from jaxlm.training.state import TrainState

LOG_EVERY = 20  # steps averaged in a line of metrics.jsonl

logger = logging.getLogger(__name__)


class RunLogger:
    """Evaluates a model in training, and writes checkpoints, metrics and messages.

    `resumed` is the progress after `first_step` steps, those done before this process. Of several processes, the first
    one writes files and shows progress.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        checkpoints: Checkpoints,
        compilation: Compilation,
        corpus: Corpus,
        first_step: int,
        resumed: Progress,
        progress: bool,
        mesh: Mesh | None = None,
    ):
        if config.train is None or config.schedule is None:
            raise InputError(f"{directory} has no training settings.")
        self.directory, self.config, self.checkpoints, self.valid = directory, config, checkpoints, corpus.valid
        self.compilation = compilation
        self.train, self.schedule, self.first_step, self.mesh = config.train, config.schedule, first_step, mesh
        self.writes, self.progress = is_first(), progress and is_first()
        self.unigram_loss = unigram_loss(corpus.valid, corpus.counts)
        self.learning_rates = jit_learning_rates(self.schedule, config.total_steps, mesh)
        self.length, self.estimated = StepEstimate(self.schedule, first_step), 0
        self.logged = resumed.logged  # steps and seconds at the last line of metrics.jsonl
        self.losses = list(resumed.losses)  # since that line
        self.averaging = AveragingTrigger(self.train.average_patience, resumed.valid_losses)
        self.config_is_saved = True
        self.saved_step, self.saved_at = first_step, time.perf_counter()
        self.metrics = MetricsLog(directory, first_step)

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"jaxlm resume {shlex.quote(str(self.directory))}"

    def progress_bar(self) -> tqdm:
        """Returns the bar of the steps."""
        total = self.config.total_steps or None
        return tqdm(total=total, initial=self.first_step, unit=" steps", disable=None if self.progress else True)

    def estimate_length(self, step: int, seconds: float) -> int:
        """Returns the number of steps of the run; 0 before the decay begins, if `minutes` is the length.

        The first estimate stays, since several processes learn of it a step later.
        """
        self.estimated = self.config.total_steps or self.estimated or self.length.total_steps(step, seconds)
        return self.estimated

    def fix_length(self, total_steps: int) -> None:
        """Fixes the number of steps, and writes it to config.json."""
        if total_steps in (0, self.config.total_steps):
            return
        self.config = self.config._replace(total_steps=total_steps)
        self.learning_rates = jit_learning_rates(self.schedule, total_steps, self.mesh)
        self._save_config()

    def _save_config(self) -> None:
        """Writes config.json, or tries again with the next checkpoint."""
        if not self.writes:
            return
        try:
            save_config(self.directory, self.config)
            self.config_is_saved = True
        except InputError as error:
            self.config_is_saved = False
            logger.warning("%s; training continues, and tries again", error)

    def log_training(self, step: int, learning_rate: float, seconds: float, bar: tqdm) -> None:
        """Writes and shows the mean loss and the speed since the last time."""
        if not self.losses:
            return
        loss, self.losses = float(np.mean(self.losses)), []
        last_step, last_seconds = self.logged
        words = self.train.batch_size * self.train.sequence_length
        speed = words * (step - last_step) / max(seconds - last_seconds, 1e-9)
        self.logged = (step, seconds)
        self.metrics.add(step, train_loss=loss, learning_rate=learning_rate, seconds=seconds, words_per_second=speed)
        bar.total = self.config.total_steps or int(step * self.schedule.minutes * 60 / seconds)
        bar.set_postfix_str(f"training loss {loss:.3f}, {speed:,.0f} words/s")

    def save_interval_passed(self) -> bool:
        """Returns whether `save_minutes` have passed since the last checkpoint, by the clock of this process."""
        minutes = self.schedule.save_minutes
        return minutes > 0 and time.perf_counter() - self.saved_at >= 60 * minutes

    def should_save(self, step: int, save_interval_passed: bool) -> bool:
        """Returns whether a checkpoint is due by `save_steps` or `save_minutes`."""
        steps = self.schedule.save_steps
        return step != self.saved_step and (save_interval_passed or (steps > 0 and step % steps == 0))

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Writes a checkpoint; if the disk is full, training continues with the existing ones.

        Raises:
          InputError: a weight or a moment is not finite.
        """
        self.compilation.wait("not finite")
        if broken := not_finite(state):
            raise InputError(self._advice(f"The values of {', '.join(broken)} are no longer finite at step {step}."))
        self.saved_at = time.perf_counter()
        if not self.config_is_saved:
            self._save_config()
        try:
            self.checkpoints.save(step, state, self._with_place(progress))
            self.saved_step = step
        except OSError as error:
            if jax.process_count() > 1:  # the others wait for this one
                raise InputError(f"{error}; fix that, and start all processes again to resume the run.") from error
            logger.warning("%s; training continues, and tries again with the next checkpoint", error)

    def _with_place(self, progress: Progress) -> Progress:
        """Adds the state of the metrics and the devices."""
        return progress._replace(
            logged=self.logged,
            losses=tuple(self.losses),
            valid_losses=tuple(self.averaging.losses),
            mesh=mesh_shape(self.mesh),
            num_processes=jax.process_count(),
            device=jax.devices()[0].device_kind,
        )

    def finish(self, step: int) -> None:
        """Waits for the last checkpoint.

        Raises:
          InputError: it could not be written.
        """
        try:
            self.checkpoints.wait()
        except OSError as error:
            logger.warning("%s", error)
            self.saved_step = -1
        if self.saved_step != step:
            raise InputError(
                f"The last checkpoint of {self.directory}, at step {step}, could not be written. Make room on the"
                f" disk, and resume with: {self.resume_command}"
            )

    def evaluate(self, state: TrainState) -> Evaluation:
        """Computes the exact loss on the validation text."""
        self.compilation.wait("evaluation")
        return evaluate(state.averaged_model, self.valid, max_tokens=self.schedule.eval_tokens, progress=self.progress)

    def evaluate_and_save(
        self, step: int, state: TrainState, progress: Progress, next_batch: Batch
    ) -> tuple[Evaluation, TrainState]:
        """Evaluates, writes a checkpoint, and reports the result and the gap to the sampled loss of the next batch.

        In the state that it returns and saves, averaging may have begun.
        """
        evaluation = self.evaluate(state)
        if not math.isfinite(evaluation.loss):
            raise InputError(self._advice(f"The exact loss is {evaluation.loss} at step {step}."))
        self.compilation.wait("sampling gap")
        exact, training = map(float, exact_and_training_loss(state, shard_batch(next_batch, self.mesh)))
        values = {"valid_loss": evaluation.loss, "valid_perplexity": evaluation.perplexity}
        values["valid_words"] = evaluation.num_tokens
        self.metrics.add(step, **values, exact_train_loss=exact, loss_gap=exact - training)
        state = self.averaging.after_evaluation(step, state, evaluation.loss)
        self.save(step, state, progress._replace(valid_loss=evaluation.loss))
        limit = self.unigram_loss + DIVERGED
        if evaluation.loss > limit:
            good = self.checkpoints.first_intact(self.checkpoints.by_loss(limit))
            back = f"Stop the run, delete the checkpoints after {good} in {self.checkpoints.directory}, and resume"
            logger.warning(
                f"step {step}: the exact loss is {evaluation.loss:.2f} nats per word, far above the"
                f" {self.unigram_loss:.2f} of the unigram model: the model has diverged."
                f" {back if good else 'Start again in another `out`'} with a lower `learning_rate`."
            )
            return evaluation, state
        side = f"{abs(exact - training):.3f} {'below' if training <= exact else 'above'}"
        gap = "" if self.train.loss == "full" else f"; the training loss is {side} the exact one"
        logger.info(
            f"step {step}: validation perplexity {evaluation.perplexity:.2f}"
            f" (exact, {evaluation.num_tokens:,} words, loss {evaluation.loss:.4f}{gap})"
        )
        return evaluation, state

    def record_loss(self, loss: float, step: int, skipped_in_a_row: int) -> None:
        """Keeps the loss of a step for the next line of metrics, or warns that the step was skipped.

        Raises:
          InputError: too many steps in a row were skipped.
        """
        if not skipped_in_a_row:
            self.losses.append(loss)
            return
        logger.warning("step %d: the loss or its gradient is not finite; the step was skipped", step)
        if skipped_in_a_row >= MAX_SKIPPED:
            problem = f"The loss or its gradient was not finite in {skipped_in_a_row} steps up to {step}."
            raise InputError(self._advice(problem))

    def _advice(self, problem: str) -> str:
        """Adds advice to the message that numbers are not finite."""
        clip = "lower the `clip_norm`" if self.train.clip_norm else "set a `clip_norm`, such as 10,"
        latest = self.checkpoints.first_intact(filter(None, self.checkpoints.steps()))
        if latest is None:
            return f"{problem} There is no checkpoint yet: start again with a lower `learning_rate`, or {clip}."
        return f"{problem} Checkpoint {latest} in {self.directory} is intact: resume with a lower `learning_rate`."
