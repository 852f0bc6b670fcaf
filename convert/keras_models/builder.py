"""Builds and compiles the Keras model of a `ModelConfig`."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.optimizer_state import EPSILON, SLOTS, OptimizerState
from convert.weights.table import ALIGNMENT, aligned_copy, to_keras_weights
from jaxlm.config import ModelConfig


def build(config: ModelConfig, options: ExportOptions = DEFAULT_OPTIONS) -> keras.Model:
    """Builds an ordinary functional Keras model.

    Args:
      config: shape of the model. Dropout is left out, since it has no effect in inference.
      options: inputs, outputs and data type of the model.

    Returns:
      A model from ids `[batch, time]` int32 to probabilities `[batch, time, vocab_size]` float32, of any
      batch size and length. With `single_step`, from `{"token_ids": [batch, 1], "h_1": [batch, hidden_size],
      "c_1", ...}` to `{"probabilities": [batch, vocab_size], "h_1", "c_1", ...}`.
    """
    if options.single_step:
        return _build_step(config, options)
    inputs = keras.Input((None,), dtype="int32", name="token_ids")
    outputs = _embedding(config, options)(inputs)
    for n in range(1, len(config.lstms) + 1):
        return_sequences = n < len(config.lstms) or not options.last_only
        outputs = _lstm(config, options, n, return_sequences=return_sequences)(outputs)
    return keras.Model(inputs, _softmax(config, options, outputs), name="language_model")


def _build_step(config: ModelConfig, options: ExportOptions) -> keras.Model:
    token_ids = keras.Input((1,), dtype="int32", name="token_ids")
    states_in: dict[str, Any] = {}
    states_out: dict[str, Any] = {}
    outputs = _embedding(config, options)(token_ids)
    for n, layer in enumerate(config.lstms, start=1):
        lstm = _lstm(config, options, n, return_sequences=n < len(config.lstms), return_state=True)
        states = {f"{s}_{n}": keras.Input((layer.size,), dtype=options.dtype, name=f"{s}_{n}") for s in "hc"}
        outputs, *new = lstm(outputs, initial_state=list(states.values()))
        states_in |= states
        states_out |= dict(zip(states, new, strict=True))
    result = {"logits" if options.logits else "probabilities": _softmax(config, options, outputs)}
    return keras.Model({"token_ids": token_ids} | states_in, result | states_out, name="language_model_step")


def _embedding(config: ModelConfig, options: ExportOptions) -> keras.layers.Layer:
    return keras.layers.Embedding(config.vocab_size, config.embedding_size, dtype=options.dtype, name="embedding")


def _lstm(config: ModelConfig, options: ExportOptions, n: int, **settings: bool) -> keras.layers.Layer:
    # there is no QR decomposition in 16 bits
    initializer = "orthogonal" if options.dtype == "float32" else "glorot_uniform"
    layer = config.lstms[n - 1]
    settings |= {"use_bias": layer.use_bias}
    return keras.layers.LSTM(
        layer.size, dtype=options.dtype, recurrent_initializer=initializer, name=f"lstm_{n}", **settings
    )


def _softmax(config: ModelConfig, options: ExportOptions, outputs: Any) -> Any:
    """Applies the Dense layers and the softmax, which is always in float32."""
    settings: dict[str, Any]
    for n, layer in enumerate(config.dense, start=1):
        settings = {"use_bias": layer.use_bias, "dtype": options.dtype, "name": f"dense_{n}"}
        outputs = keras.layers.Dense(layer.size, activation=layer.activation, **settings)(outputs)
    activation = "softmax" if options.dtype == "float32" and not options.logits else None
    settings = {"use_bias": config.softmax_bias, "dtype": options.dtype, "name": "softmax"}
    outputs = keras.layers.Dense(config.vocab_size, activation=activation, **settings)(outputs)
    if options.logits or activation:
        return outputs
    return keras.layers.Activation("softmax", dtype="float32", name="probabilities")(outputs)


def compile_model(model: keras.Model, state: OptimizerState, config: ModelConfig) -> None:
    """Compiles a Keras model with an optimizer in a given state, and sparse categorical cross-entropy.

    Args:
      model: as from `build`.
      state: of jaxlm's optimizer.
      config: of the model; not tied, since Keras has two tables with separate states.

    Raises:
      InputError: a moment is not finite.
    """
    clip = state.clip_norm or None
    if state.name == "adam":
        optimizer = keras.optimizers.Adam(
            state.learning_rate, beta_2=state.beta_2, epsilon=EPSILON["adam"], global_clipnorm=clip
        )
    elif state.name == "sgd":
        optimizer = keras.optimizers.SGD(state.learning_rate, global_clipnorm=clip)
    else:
        optimizer = keras.optimizers.Adagrad(state.learning_rate, epsilon=EPSILON["adagrad"], global_clipnorm=clip)
    from_logits = model.layers[-1].get_config().get("activation") == "linear"
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(state.steps)
    arrays = [list(to_keras_weights(state.slots[slot], config).values()) for slot in SLOTS[state.name]]
    interleaved = [array for arrays_of_weight in zip(*arrays, strict=True) for array in arrays_of_weight]
    for variable, array in zip(optimizer.variables[2:], interleaved, strict=True):  # after iterations, learning_rate
        variable.assign(array)


def assign_weights(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Assigns weights by their Keras paths, each of which must exist."""
    variables = {variable.path: variable for variable in model.weights}
    for path, array in weights.items():
        variables[path].assign(array)


def abstract(make: Callable[[], keras.Model]) -> keras.Model:
    """Makes a Keras model whose variables have shapes but no values. It is called in a scope that supplies the values.

    It is made in a new thread: Keras keeps a list of variables without values for each thread, and initializes them
    when that thread makes another variable.
    """

    def in_scope() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_scope).result()


def tensor_of(array: np.ndarray) -> Any:
    """Returns an array as a tensor of the Keras backend, copied at most once.

    TensorFlow uses aligned memory without a copy. Its own conversion makes two copies, and keeps both during the
    life of the tensor.
    """
    if keras.backend.backend() != "tensorflow" or array.dtype.kind != "f":
        return keras.ops.convert_to_tensor(array)
    import tensorflow as tf

    if not array.flags.c_contiguous or not array.flags.writeable or array.ctypes.data % ALIGNMENT:
        array = aligned_copy(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
