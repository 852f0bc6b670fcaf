"""`fit_keras`: trains a live Keras model in JAX with sampled softmax, with the arguments of `model.fit`."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import keras

from convert.fit.arguments import (
    check_initial_values,
    check_numbers,
    check_shape,
    class_counts,
    class_weights,
    refuse_others,
)
from convert.fit.callbacks import open_callbacks
from convert.fit.compile_settings import keras_of
from convert.fit.examples import Labels, Passes, Shape, scan
from convert.fit.loop import Data, Training
from convert.fit.metrics import open_metrics
from convert.fit.network import Network
from convert.fit.session import InitialBiases, InitialEmbeddings, open_session
from convert.fit.sources import Examples, open_examples, to_arrays
from jaxlm.config import ComputeDtype, Sampler, TrainConfig
from jaxlm.errors import require
from jaxlm.parallel.mesh import Mesh, on_host
from jaxlm.training.state import TrainState
from jaxlm.training.state_sharding import shard_state

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
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | list[int] = 1,
    counts: Any = None,
    num_sampled: int = 1000,
    sampler: Sampler = "log_uniform",
    initial_biases: InitialBiases = None,
    initial_embeddings: InitialEmbeddings = None,
    compute_dtype: ComputeDtype = "auto",
    seed: int = 0,
    mesh: Mesh | None = None,
    **other: Any,
) -> Any:
    """Trains a Keras model in place, as `model.fit` does, but with sampled softmax.

    A step costs the same at any vocabulary size. The loss in the history is the sampled one, lower than the exact
    loss; `val_loss` and the compiled metrics on validation data are exact, and equal those of `model.evaluate`. The
    compiled optimizer is used, and its state is updated; the default is Adam with a learning rate of 0.003. Losses
    are averaged as in Keras, without masked ids. The model has the new weights at the end, also after Ctrl-C, and
    whenever a callback may read them.

    Args:
      model: live: Embedding, LSTM and Dense layers of Keras 3 or `tf_keras`; or, under Keras' JAX backend, any
        functional or Sequential one that ends in Dense(V) or ReversibleEmbedding. States of a stateful chain
        of LSTMs carry over.
      x: `[N, T]` integer ids, in any order of frequency, or the model's inputs as in `model.fit`; or batches
        (x, y) or (x, y, sample_weight) from a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader` or
        a Python generator. They are read once before training, to count the words; of an endless stream only the
        first `steps_per_epoch` batches.
      y: labels `[N, T]`, or `[N]` if the model predicts only the next word; integer or one-hot. None with a dataset.
      batch_size: of arrays; 32 by default.
      epochs: last epoch, counted from 0 and not from `initial_epoch`.
      verbose: 0 for silence, 1 for a progress bar, 2 for a line per epoch.
      callbacks: of Keras: one, or any nesting of them. They read the weights of the last step, and may change them.
      validation_split: last fraction of the arrays to validate on.
      validation_data: (x, y), (x, y, sample_weight) or batches, as `x`.
      shuffle: whether to shuffle the examples of arrays, and the batches of a PyDataset, in each epoch; by default
        unless the model is stateful.
      class_weight: weight of the labels of a class; 1 for classes that are not in it.
      sample_weight: `[N, T]` or `[N]`, the weight of each label.
      initial_epoch: epoch to start with.
      steps_per_epoch: batches of an epoch, which continues where the last one stopped; by default a whole pass.
      validation_steps: batches of a validation; by default a whole pass.
      validation_batch_size: `batch_size` by default.
      validation_freq: epochs between validations, or the epochs that end with one, counted from 1.
      counts: `[V]` label counts by id, for the sampler; by default counted in the examples. The log-uniform sampler
        uses only their order: for ids with known ranks, from 0 for the most frequent one, give `V - ranks`.
      num_sampled: classes sampled per step; at most the vocabulary.
      sampler: as in `jaxlm.TrainConfig`, over ids ranked by label frequency.
      initial_biases: "unigram" initializes the softmax biases with the log-probabilities of the labels.
      initial_embeddings: "counts" initializes embedding and softmax rows with word vectors counted from `x`.
      compute_dtype: as in `jaxlm.TrainConfig`.
      seed: of sampling, dropout and shuffling.
      mesh: as from `jaxlm.make_mesh`, to train on several devices of this process.
      other: refused by name.

    Returns:
      A `keras.callbacks.History` with "loss", "val_loss" and metrics such as "val_accuracy".

    Raises:
      InputError: jaxlm cannot represent the model, an argument does not fit, or training diverges.

    References:
      `keras.Model.fit`; `tf.nn.sampled_softmax_loss`.

    >>> import keras
    >>> import numpy as np
    >>> layers = [keras.layers.Embedding(50, 8), keras.layers.LSTM(16, return_sequences=True), keras.layers.Dense(50)]
    >>> model = keras.Sequential(layers)
    >>> ids = np.random.default_rng(0).integers(0, 50, (64, 10))
    >>> history = fit_keras(model, ids[:, :-1], ids[:, 1:], num_sampled=10, verbose=0)
    >>> list(history.history)
    ['loss']
    """
    refuse_others(other, fit_keras)
    sizes = {"batch_size": batch_size, "validation_batch_size": validation_batch_size, "epochs": epochs}
    steps = {"steps_per_epoch": steps_per_epoch, "validation_steps": validation_steps}
    check_numbers(validation_freq, sizes | steps)
    session, labels = open_session(model, (None, *getattr(x, "shape", (0, None))[1:]))
    network, stateful = session.network, session.network.batch_size is not None
    shuffle = not stateful if shuffle is None else shuffle
    require(not (stateful and shuffle), "shuffle", "False for a stateful model", shuffle)
    check_initial_values(network, initial_biases, initial_embeddings)
    require(mesh is None or network.is_chain, "mesh", "None unless the body is LSTMs", mesh)
    require(mesh is None or session.accumulation is None, "mesh", "None with gradient_accumulation_steps", mesh)
    size = 32 if batch_size is None else batch_size
    valid_size = size if validation_batch_size is None else validation_batch_size
    train, valid = _open(x, y, sample_weight, size, validation_split, validation_data, valid_size)
    shape = scan(train, network, labels, steps_per_epoch, keep_ids=initial_embeddings is not None)
    check_shape(network, shape, "x", "batch_size")
    label_counts = shape.counts if counts is None else class_counts(counts, network.vocab_size)
    validation = None if valid is None else _open_validation(valid, network, labels, validation_steps)
    weights = None if class_weight is None else class_weights(class_weight, network.vocab_size)
    metrics = open_metrics(model, network.logits)
    data = Data(Passes(train, shape, steps_per_epoch), validation, validation_freq, shuffle, labels, weights, metrics)
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
    state = session.read(config, label_counts)
    state = session.initialize(state, label_counts, shape.ids, initial_biases, initial_embeddings)
    if mesh is not None:
        with on_host():
            state = shard_state(state, mesh)
    shown = 1 if verbose == "auto" else verbose
    modes = {"loss": "min"}
    if validation is not None:
        modes |= {"val_loss": "min"} | {f"val_{metric.name}": metric.mode for metric in metrics}
    params = {"epochs": epochs, "steps": steps_per_epoch or shape.num_batches, "verbose": shown}
    hooks = open_callbacks(keras_of(model), model, callbacks, modes, bool(shown), **params)
    if shown:
        _announce(state, train, shape, counts is None)
    Training(session, state, data, hooks).run(range(initial_epoch, epochs))
    return model.history


def _announce(state: TrainState, train: Examples, shape: Shape, is_counted: bool) -> None:
    print(f"loss: sampled softmax over {state.config.num_sampled:,} words, lower than the exact loss; val_loss: exact")
    if is_counted and not train.ends:
        print(f"the sampler follows the labels of the first {shape.num_batches:,} batches; or give `counts`")


def _open_validation(examples: Examples, network: Network, labels: Labels, steps: int | None) -> Passes:
    shape = scan(examples, network, labels, steps)
    if not network.is_chain:  # a chain of LSTMs takes other sizes, too
        check_shape(network, shape, "validation_data", "validation_batch_size")
    return Passes(examples, shape, steps, continues=False)


def _open(
    x: Any,
    y: Any,
    weights: Any,
    batch_size: int,
    split: float,
    validation_data: Any,
    validation_batch_size: int,
) -> tuple[Examples, Examples | None]:
    """Opens the examples to train on, and those to validate on if there are any."""
    require(0.0 <= split < 1.0, "validation_split", "a fraction in [0, 1)", split)
    if split:
        require(validation_data is None, "validation_split", "0 with `validation_data`", split)
        require(y is not None, "validation_split", "0 for a dataset", split)
        arrays = to_arrays(x, y, weights, "x")
        at = math.floor(len(arrays[1]) * (1.0 - split))
        require(0 < at < len(arrays[1]), "validation_split", "examples on both sides", split)
        validation_data = keras.tree.map_structure(lambda array: array[at:], arrays)
        x, y, weights = (*keras.tree.map_structure(lambda array: array[:at], arrays), None)[:3]
    train = open_examples(x, y, weights, batch_size)
    if validation_data is None:
        return train, None
    if not isinstance(validation_data, tuple | list):
        validation_data = (validation_data, None)
    fits = len(validation_data) in (2, 3)
    require(fits, "validation_data", "(x, y), (x, y, sample_weight) or a dataset", f"{len(validation_data)} values")
    x, y, weights = (*validation_data, None)[:3]
    return train, open_examples(x, y, weights, validation_batch_size, "validation_data")
