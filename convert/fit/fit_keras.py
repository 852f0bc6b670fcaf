"""`fit_keras`: trains a live Keras model in JAX with sampled softmax, with the arguments of `model.fit`."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from convert.fit.batches import read_any, to_any_batch
from convert.fit.callbacks import callback_list, flat_callbacks, may_read_weights
from convert.fit.compile_settings import keras_of
from convert.fit.examples import Examples, Labels, Shape, open_examples, read, scan, to_batch
from convert.fit.network import Network
from convert.fit.session import InitialBiases, InitialEmbeddings, Session, open_session
from jaxlm.config import ComputeDtype, Sampler, TrainConfig
from jaxlm.data.batches import Batch, place_streams, shard_batch
from jaxlm.errors import InputError, require
from jaxlm.parallel.mesh import Mesh, on_host
from jaxlm.runs.deferred_losses import MAX_SKIPPED, DeferredLosses
from jaxlm.runs.stop_signals import StopSignals
from jaxlm.training.evaluation import exact_batch_loss
from jaxlm.training.state import TrainState, shard_state
from jaxlm.training.step import train_step

Verbose = Literal["auto", 0, 1, 2]


def fit_keras(
    model: Any,
    x: Any,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: Verbose = "auto",
    callbacks: Any = None,
    *,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    validation_batch_size: int | None = None,
    num_sampled: int = 1000,
    sampler: Sampler = "log_uniform",
    initial_biases: InitialBiases = None,
    initial_embeddings: InitialEmbeddings = None,
    compute_dtype: ComputeDtype = "auto",
    seed: int = 0,
    mesh: Mesh | None = None,
    **other: Any,
) -> Any:
    """Trains a Keras language model in place, as `model.fit` does, but with sampled softmax.

    A step costs the same at any vocabulary size. The loss in the history is the sampled one, lower than the exact
    loss; `val_loss` is the exact mean over the labels that count. The model may be compiled with Adam, Adagrad or
    SGD; its learning rate or schedule, `clipnorm` and `global_clipnorm` are used, and the optimizer's state goes in
    and comes back. Without compilation it is Adam with a learning rate of 0.003. Gradients are divided as Keras
    divides them; masked ids, and labels of weight 0, take no part. Weights are back in the model at the end, also
    after Ctrl-C, and before callbacks at the end of an epoch.

    Args:
      model: live, of Keras 3 or `tf_keras`, as `from_keras` reads it. A stateful one carries its state on.
      x: `[N, T]` integer ids, in any order of frequency; or a `tf.data.Dataset` or a `keras.utils.PyDataset` of
        batches (x, y) or (x, y, sample_weight), which is read once more than `epochs` times, to count the words.
      y: labels `[N, T]`, or `[N]` if the model predicts only the word after the last one; integer or one-hot.
      batch_size: of arrays; 32 by default.
      epochs: last epoch, counted from 0 and not from `initial_epoch`.
      verbose: 0 for silence, 1 for a progress bar, 2 for a line per epoch.
      callbacks: of Keras. Those that act on batches are refused.
      validation_split: last fraction of the arrays to validate on.
      validation_data: (x, y), (x, y, sample_weight) or a dataset.
      shuffle: whether to shuffle the examples of arrays, and the batches of a PyDataset, in each epoch; by default
        unless the model is stateful.
      sample_weight: `[N, T]` or `[N]`, the weight of each label.
      initial_epoch: where to begin.
      validation_batch_size: `batch_size` by default.
      num_sampled: classes sampled per step; at most the vocabulary.
      sampler: as in `jaxlm.TrainConfig`, over ids sorted by how often they are labels.
      initial_biases: "unigram" starts the softmax biases at the log-probabilities of the labels.
      initial_embeddings: "counts" starts embedding and softmax rows at word vectors counted from `x`.
      compute_dtype: as in `jaxlm.TrainConfig`.
      seed: of sampling, dropout and shuffling.
      mesh: as from `jaxlm.make_mesh`, to train on several devices of this process.
      other: refused by name, such as `class_weight`.

    Returns:
      A `keras.callbacks.History` with "loss" and "val_loss".

    Raises:
      InputError: jaxlm cannot represent the model, an argument does not fit, or training diverges.

    References:
      `keras.Model.fit`; `tf.nn.sampled_softmax_loss`.

    >>> import keras
    >>> layers = [keras.layers.Embedding(50, 8), keras.layers.LSTM(16, return_sequences=True), keras.layers.Dense(50)]
    >>> model = keras.Sequential(layers)
    >>> ids = np.random.default_rng(0).integers(0, 50, (64, 10))
    >>> history = fit_keras(model, ids[:, :-1], ids[:, 1:], num_sampled=10, verbose=0)
    >>> list(history.history)
    ['loss']
    """
    for argument, value in other.items():
        require(value is None, argument, "an argument that fit_keras has", value)
    session, labels = open_session(model, getattr(x, "shape", (0, None))[-1])
    network, stateful = session.network, session.network.batch_size is not None
    shuffle = not stateful if shuffle is None else shuffle
    require(not (stateful and shuffle), "shuffle", "False for a stateful model", shuffle)
    frozen = initial_embeddings is not None and "embedding" in network.frozen
    require(not frozen, "initial_embeddings", "None for an embedding that is not trainable", initial_embeddings)
    require(mesh is None or network.structure is not None, "mesh", "None unless the body is LSTMs", mesh)
    size = 32 if batch_size is None else batch_size
    train, valid = _open(x, y, sample_weight, size, validation_split, validation_data, validation_batch_size or size)
    shape = scan(train, labels, partial(_read, network, labels), keep_ids=initial_embeddings is not None)
    _check_shape(network, labels, shape)
    config = TrainConfig(
        batch_size=shape.batch_size,
        sequence_length=shape.sequence_length,
        num_sampled=num_sampled,
        sampler=sampler,
        clip_norm=session.optimizer.clip_norm,
        clip_each=session.optimizer.clip_each,
        compute_dtype=compute_dtype,
        seed=seed,
    )
    checked = None if valid is None else (valid, scan(valid, labels, partial(_read, network, labels)))
    data = Data(train, shape, checked, shuffle, labels)
    state = session.read(config, shape.counts)
    state = session.initialize(state, shape.counts, shape.ids, initial_biases, initial_embeddings)
    if mesh is not None:
        with on_host():
            state = shard_state(state, mesh)
    shown = 1 if verbose == "auto" else verbose
    if shown:
        print(
            f"loss: sampled softmax over {state.config.num_sampled:,} words, lower than the exact loss; val_loss: exact"
        )
    listed = flat_callbacks(callbacks)
    params = {"epochs": epochs, "steps": shape.num_batches, "verbose": shown}
    hooks = callback_list(keras_of(model), model, listed, bool(shown), **params)
    _run_epochs(session, state, data, hooks, range(initial_epoch, epochs), may_read_weights(listed))
    return model.history


def _read(network: Network, labels: Labels, batch: Any, name: str) -> Any:
    """Reads a batch of examples as the network needs it."""
    return read(batch, labels, name) if network.structure is not None else read_any(batch, network, labels, name)


def _check_shape(network: Network, labels: Labels, shape: Shape) -> None:
    """Raises `InputError` if batches do not fit the states of a stateful model."""
    size = network.batch_size
    if size is not None:
        require(shape.batch_size == size, "batch_size", f"{size}, as the stateful model has", shape.batch_size)
        expected = f"a multiple of {size} examples of equal length, for a stateful model"
        require(shape.is_regular, "x", expected, "another number or length")
        require(not shape.is_masked, "x", "no 0 for a stateful model that masks it", "0")


class Data(NamedTuple):
    """Examples to train and to validate on."""

    train: Examples
    shape: Shape
    valid: tuple[Examples, Shape] | None
    shuffle: bool
    labels: Labels


def _open(
    x: Any, y: Any, weights: Any, batch_size: int, split: float, validation_data: Any, validation_batch_size: int
) -> tuple[Examples, Examples | None]:
    """Opens the examples to train on, and those to validate on if there are any."""
    require(0.0 <= split < 1.0, "validation_split", "a fraction in [0, 1)", split)
    if split:
        require(validation_data is None, "validation_split", "0 beside validation_data", split)
        require(y is not None, "validation_split", "0 for a dataset", split)
        arrays = [np.asarray(array) for array in (x, y, weights) if array is not None]
        at = math.floor(len(arrays[0]) * (1.0 - split))
        require(0 < at < len(arrays[0]), "validation_split", "examples on both sides", split)
        validation_data = tuple(array[at:] for array in arrays)
        x, y, weights = [array[:at] for array in arrays] + [None] * (3 - len(arrays))
    train = open_examples(x, y, weights, batch_size)
    if validation_data is None:
        return train, None
    if not isinstance(validation_data, tuple | list):
        validation_data = (validation_data, None)
    fits = len(validation_data) in (2, 3)
    require(fits, "validation_data", "(x, y), (x, y, sample_weight) or a dataset", f"{len(validation_data)} values")
    x, y, weights = (*validation_data, None)[:3]
    return train, open_examples(x, y, weights, validation_batch_size, "validation_data")


def _run_epochs(
    session: Session, state: TrainState, data: Data, hooks: Any, epochs: range, write_each_epoch: bool
) -> None:
    """Trains, and puts the weights back, whatever ends it."""
    session.model.stop_training = False
    step, is_written, logs = int(state.step), False, {}
    hooks.on_train_begin()
    state = session.refresh(state)
    step = int(state.step)
    epochs = epochs[max((getattr(session.model, "_initial_epoch", None) or 0) - epochs.start, 0) :]  # BackupAndRestore
    with StopSignals() as stop:
        try:
            for epoch in epochs:
                hooks.on_epoch_begin(epoch)
                state = session.refresh(state)
                losses = EpochLosses(hooks)
                for batch, size in _train_batches(session.network, data, (state.config.seed, step)):
                    state, loss = train_step(state, batch, session.optimizer.learning_rate(step))
                    step, is_written = step + 1, False
                    losses.add(loss, size)
                    stop.raise_if_requested()
                logs = {"loss": losses.mean()}
                if data.valid is not None:
                    logs["val_loss"] = _validation_loss(session.network, state, data, stop)
                if write_each_epoch:
                    session.write(state, last=epoch == epochs[-1])
                    is_written = True
                hooks.on_epoch_end(epoch, logs)
                state = session.refresh(state)
                step = int(state.step)
                if session.model.stop_training:
                    break
        finally:
            if not is_written:
                session.write(state, last=True)
    hooks.on_train_end(logs)


def _to_batch(
    network: Network, labels: Labels, batch: Any, shape: Shape, name: str, *, mean: bool
) -> tuple[Batch, float]:
    if network.structure is None:
        return to_any_batch(batch, network, labels, name, mean=mean)
    return to_batch(batch, labels, shape, name, mean=mean)


def _train_batches(network: Network, data: Data, seed: tuple[int, int]) -> Iterator[tuple[Batch, int]]:
    """Yields the batches of an epoch, and how many examples each has."""
    for examples in data.train.batches(seed if data.shuffle else None):
        batch, _ = _to_batch(network, data.labels, examples, data.shape, data.train.name, mean=True)
        yield batch._replace(starts_epoch=network.batch_size is None), len(examples[1])


class EpochLosses:
    """The losses of an epoch, shown one step late."""

    def __init__(self, hooks: Any):
        self.hooks, self.deferred = hooks, DeferredLosses(self._show)
        self.losses: list[float] = []
        self.sizes: list[int] = []

    def add(self, loss: jax.Array, size: int) -> None:
        """Adds the loss of a batch of `size` examples, and shows the one before."""
        self.deferred.add(loss, size)

    def mean(self) -> float:
        """Returns the mean over the examples, as Keras does."""
        self.deferred.fetch()
        return float(np.average(self.losses, weights=self.sizes)) if self.losses else math.nan

    def _show(self, loss: float, size: int, skipped_in_a_row: int) -> None:
        if skipped_in_a_row >= MAX_SKIPPED:
            raise InputError(
                f"The loss or its gradient was not finite in {MAX_SKIPPED} steps in a row, which were skipped;"
                " compile the model with a lower learning rate or with a smaller `global_clipnorm`."
            )
        if not skipped_in_a_row:
            self.losses.append(loss)
            self.sizes.append(size)
        number = len(self.losses) + skipped_in_a_row - 1
        self.hooks.on_train_batch_begin(number)
        self.hooks.on_train_batch_end(number, {"loss": float(np.mean(self.losses)) if self.losses else math.nan})


def _validation_loss(network: Network, state: TrainState, data: Data, stop: StopSignals) -> float:
    """Returns the exact loss as `model.evaluate` does: the mean over batches by size, each from the zero state."""
    valid, shape = cast(tuple[Examples, Shape], data.valid)
    carry = state.carry
    if network.structure is not None:
        zeros = [jnp.zeros((shape.batch_size, lstm.size)) for lstm in network.structure.config.lstm_layers]
        carry = tuple((place_streams(array, state.mesh), place_streams(array, state.mesh)) for array in zeros)
    state = dataclasses.replace(state, carry=carry)
    losses, sizes = [], []
    for examples in valid.batches(None):
        batch, _ = _to_batch(network, data.labels, examples, shape, valid.name, mean=True)
        losses.append(float(exact_batch_loss(state, shard_batch(batch, state.mesh))))
        sizes.append(len(examples[1]))
        stop.raise_if_requested()
    return float(np.average(losses, weights=sizes))
