"""The loop of `fit_keras`: epochs, batches, validation and callbacks."""

import dataclasses
import math
from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np

from convert.fit.batches import as_keras_weights, grown, to_batch, unpacked
from convert.fit.callbacks import Hooks, check_compiled
from convert.fit.examples import Labels, Passes, ReadBatch, read
from convert.fit.metrics import LabelStatistics, Means, Metric
from convert.fit.session import Session
from jaxlm.data.batches import Batch, shard_batch
from jaxlm.errors import InputError
from jaxlm.runs.deferred_losses import MAX_SKIPPED, DeferredLosses
from jaxlm.runs.stop_signals import StopSignals
from jaxlm.training.batch_losses import batch_statistics, exact_batch_loss
from jaxlm.training.state import TrainState


class Data(NamedTuple):
    """Examples to train and to validate on."""

    train: Passes
    valid: Passes | None
    validation_freq: int | list[int]
    shuffle: bool
    labels: Labels
    class_weights: np.ndarray | None  # [V], of labels to train on
    metrics: tuple[Metric, ...]  # of validation

    def is_validated(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends with validation, as in Keras."""
        freq = self.validation_freq
        return epoch + 1 in freq if isinstance(freq, Container) else (epoch + 1) % freq == 0


class Training:
    """A training state, the live model that it came from, and the callbacks that see the model.

    Args:
      session: of the model.
      state: as the model is.
      data: to train on.
      hooks: of the callbacks.
    """

    def __init__(self, session: Session, state: TrainState, data: Data, hooks: Hooks):
        self.session, self.state, self.data, self.hooks = session, state, data, hooks
        self.is_written = True  # whether the model holds the state
        self.step = int(state.step)
        self.network = session.network

    def run(self, epochs: range) -> None:
        """Trains, and puts the weights back, whatever ends it."""
        self.session.model.stop_training = False
        logs: dict[str, float] = {}
        self.call("on_train_begin")
        first = getattr(self.session.model, "_initial_epoch", None) or 0  # set by BackupAndRestore
        with StopSignals() as self.stop:
            try:
                for epoch in epochs[max(first - epochs.start, 0) :]:
                    self.call("on_epoch_begin", epoch)
                    logs = {"loss": self._train()}
                    if self.data.valid is not None and self.data.is_validated(epoch):
                        found = self._validate(self.data.valid)
                        logs |= {f"val_{name}": value for name, value in found.items()}
                    self.call("on_epoch_end", epoch, logs)
                    if self.session.model.stop_training:
                        break
            finally:
                if not self.is_written:
                    self.session.write(self.session.settle(self.state), last=True)
        self.is_written = True
        self.session.optimizer.finalize(self.session.model)
        self.call("on_train_end", logs)

    def call(self, hook: str, *arguments: Any) -> None:
        """Calls a hook. Callbacks read the weights of the last step, and may change them."""
        observed = self.hooks.observes(hook)
        if observed and not self.is_written:
            self.state = self.session.settle(self.state)
            self.session.write(self.state, last=False)
            self.is_written = True
        try:
            getattr(self.hooks.list, hook)(*arguments)
        except (AttributeError, ValueError) as error:
            check_compiled(self.session.model, error)
            raise
        if observed:
            self.state = self.session.refresh(self.state)
            self.step = int(self.state.step)

    def _train(self) -> float:
        """Trains for an epoch; returns the mean loss over the examples, as Keras does."""
        data, losses = self.data, EpochLosses(self)
        deferred = DeferredLosses(losses.show)  # not held by `losses`: a cycle would keep the state
        seed = (self.state.config.seed, self.step) if data.shuffle else None
        for number, examples in enumerate(data.train.epoch(seed)):
            batch = self._batch(data.train, self._read(data.train, examples), data.class_weights)
            if self.hooks.on_batches:
                self.call("on_train_batch_begin", number)
            self.state, loss = self.session.step(self.state, batch, self.step)
            overwrites = self.session.optimizer.overwrites(self.step)
            self.step, self.is_written = self.step + 1, False
            if overwrites:
                self.state = self.session.settle(self.state, overwrite=True)
            deferred.add(loss, len(examples[1]))
            if self.hooks.on_batches:
                deferred.fetch()
            self.stop.raise_if_requested()
            if self.session.model.stop_training and self.hooks.on_batches:
                break
        deferred.fetch()
        return losses.mean()

    def _read(self, passes: Passes, examples: tuple[Any, ...]) -> ReadBatch:
        """Reads a batch; a larger one than before enlarges the shape of the batches, and the state's batch."""
        network = self.network
        if network.is_chain:
            passes.shape = grown(passes.shape, examples)
        size = passes.shape.batch_size
        if passes is self.data.train and size != self.state.config.batch_size and network.batch_size is None:
            config = dataclasses.replace(self.state.config, batch_size=size)
            carry = network.zero_carry(size, self.state.mesh)
            self.state = dataclasses.replace(self.state, config=config, carry=carry)
        return read(examples, network, self.data.labels, passes.examples.name)

    def _batch(self, passes: Passes, found: ReadBatch, class_weights: np.ndarray | None = None) -> Batch:
        """Makes a batch with Keras' weights; it starts from the zero state unless the model is stateful."""
        name = passes.examples.name
        batch = to_batch(found, self.network, self.data.labels, passes.shape, name, class_weights)
        return batch._replace(starts_epoch=self.network.batch_size is None)

    def _validate(self, passes: Passes) -> dict[str, float]:
        """Returns the logs of `model.evaluate`: the mean over the examples of each batch's loss, from zero states."""
        self.call("on_test_begin")
        means = Means(self.data.metrics)
        for number, examples in enumerate(passes.epoch(None)):
            if self.hooks.on_batches:
                self.call("on_test_batch_begin", number)
            found = self._read(passes, examples)
            if self.data.metrics:
                loss, measured = self._measure(passes, found)
            else:
                batch = self._batch(passes, found)
                loss, measured = float(exact_batch_loss(*self._from_zero(batch))), None
            means.add(loss, len(examples[1]), measured)
            if self.hooks.on_batches:
                self.call("on_test_batch_end", number, means.logs())
            self.stop.raise_if_requested()
        self.call("on_test_end", means.logs())
        return means.logs()

    def _from_zero(self, batch: Batch) -> tuple[TrainState, Batch]:
        """Returns the state with zero states, and a batch on its devices that starts there."""
        carry = self.network.zero_carry(len(batch.labels), self.state.mesh)
        batch = shard_batch(batch._replace(starts_epoch=True), self.state.mesh)
        return dataclasses.replace(self.state, carry=carry), batch

    def _measure(self, passes: Passes, found: ReadBatch) -> tuple[float, LabelStatistics]:
        """Returns the loss of a batch, and the statistics of its labels."""
        labels = self.data.labels
        is_word = labels.ignore_class is not None and 0 <= labels.ignore_class < self.network.vocab_size
        valid = found.mask if is_word else found.valid  # metrics read an ignored class that is a word
        batch = self._batch(passes, found._replace(valid=valid, weights=valid.astype(np.float32)))
        *statistics, body_loss = batch_statistics(*self._from_zero(batch))
        log_probabilities, ranks = (unpacked(np.asarray(each), batch, found, labels) for each in statistics)
        loss = float(body_loss) - np.sum(as_keras_weights(found, labels, None, 1) * log_probabilities)
        measured = LabelStatistics(log_probabilities, ranks, found.labels, valid, found.mask, found.weights)
        return float(loss), measured


class EpochLosses:
    """The losses of an epoch, displayed one step late unless a callback acts on batches."""

    def __init__(self, training: Training):
        self.training = training
        self.losses: list[float] = []
        self.sizes: list[int] = []

    def mean(self) -> float:
        """Returns the mean over the examples."""
        return float(np.average(self.losses, weights=self.sizes)) if self.losses else math.nan

    def show(self, loss: float, size: int, skipped_in_a_row: int) -> None:
        """Adds the loss of a batch of `size` examples, and displays the mean.

        Raises:
          InputError: too many steps in a row were skipped.
        """
        if skipped_in_a_row >= MAX_SKIPPED:
            raise InputError(
                f"The loss or its gradient was not finite in {MAX_SKIPPED} steps in a row, which were skipped;"
                " compile the model with a lower learning rate or with a smaller `global_clipnorm`."
            )
        if not skipped_in_a_row:
            self.losses.append(loss)
            self.sizes.append(size)
        number = len(self.losses) + skipped_in_a_row - 1
        if not self.training.hooks.on_batches:
            self.training.call("on_train_batch_begin", number)
        mean = float(np.average(self.losses, weights=self.sizes)) if self.losses else math.nan
        self.training.call("on_train_batch_end", number, {"loss": mean})
