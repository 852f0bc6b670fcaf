"""Live Keras models: made from a `LanguageModel`, turned into one, and compared with one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from convert.comparison import check
from convert.keras_builder import assign_weights, build
from convert.keras_layers import Layer, Structure, read_structure
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.predictor import (
    Predictions,
    Predictor,
    language_model_predictor,
    log_probabilities,
    result_and_states,
    step_predictor,
)
from convert.weights import language_model_weights, model_from_keras_arrays, to_keras_weights
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


def to_keras(model: LanguageModel, options: ExportOptions = DEFAULT_OPTIONS) -> keras.Model:
    """Makes an ordinary Keras model with the weights of a `LanguageModel`.

    Args:
      model: the language model.
      options: what the Keras model computes: by default the probabilities `[batch, time, vocab_size]` of the
        next word at every position.

    Returns:
      A functional Keras model: Embedding -> LSTM, one or more -> Dense.

    Raises:
      InputError: a weight is NaN or infinite.

    References:
      `keras.layers.Embedding`, `keras.layers.LSTM`, `keras.layers.Dense`.

    >>> import jaxlm
    >>> from flax import nnx
    >>> model = jaxlm.LanguageModel(jaxlm.ModelConfig(50, embedding_size=8, hidden_size=16), rngs=nnx.Rngs(0))
    >>> to_keras(model).output.shape
    (None, None, 50)
    """
    weights = to_keras_weights(language_model_weights(model), model.config)  # checked before anything is built
    keras_model = build(model.config, options)
    assign_weights(keras_model, weights)
    return keras_model


def from_keras(model: Any) -> LanguageModel:
    """Makes a `LanguageModel` from a live Keras model (Keras 3 or `tf_keras`), and checks that both predict the same.

    Args:
      model: built, Sequential or functional: Embedding -> (Dropout) -> LSTM, one or more -> (Dropout) -> Dense
        with a softmax or logits. jaxlm's sampler expects ids sorted by decreasing frequency; if they are not,
        train on other ids, see `frequency_order`.

    Returns:
      The language model, float32. If the embedding has `mask_zero`, id 0 is an ordinary word in it.

    Raises:
      InputError: jaxlm cannot represent a layer (the message names it and the reason), a weight is not finite,
        or the models' log-probabilities differ.

    References:
      `keras.Model.get_weights`.

    >>> from keras import layers
    >>> model = keras.Sequential([layers.Embedding(50, 8), layers.LSTM(16, return_sequences=True), layers.Dense(50)])
    >>> model.build((None, None))
    >>> from_keras(model).config.hidden_size
    16
    """
    layers, structure = read_live_model(model)
    arrays = [array for layer in layers for array in layer.get_weights()]
    language_model = model_from_keras_arrays(arrays, structure.dropout)
    check(language_model_predictor(language_model), keras_predictor(model))
    return language_model


def load_into_keras(language_model: LanguageModel, model: Any) -> None:
    """Copies the weights of a `LanguageModel` into a live Keras model, and checks that both predict the same.

    Args:
      language_model: for example from `from_keras` of the same model, after training.
      model: of the same sizes. Its names, losses and compilation stay as they are.

    Raises:
      InputError: the sizes differ, or as `from_keras`.

    References:
      `keras.layers.Layer.set_weights`.

    >>> from keras import layers
    >>> model = keras.Sequential([layers.Embedding(50, 8), layers.LSTM(16, return_sequences=True), layers.Dense(50)])
    >>> model.build((None, None))
    >>> load_into_keras(from_keras(model), model)
    """
    layers, _ = read_live_model(model)
    weights = list(to_keras_weights(language_model_weights(language_model), language_model.config).values())
    expected = [array.shape for array in weights]
    shapes = [array.shape for layer in layers for array in layer.get_weights()]
    if shapes != expected:
        raise InputError(f"Invalid `model`: expected weights of shapes {expected}. Received: {shapes}.")
    for layer in layers:
        layer.set_weights([weights.pop(0) for _ in layer.weights])
    check(language_model_predictor(language_model), keras_predictor(model))


def read_live_model(model: Any) -> tuple[list[Any], Structure]:
    """Returns the layers that have weights, in order, and the structure of a live model.

    Raises:
      InputError: the model is not built, is not one chain of layers, or jaxlm cannot represent it.
    """
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError("The Keras model is not built yet; call it once, or use model.build((None, None)).")
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    for layer in layers:
        origin, kind = type(layer).__module__.split(".")[0], type(layer).__name__
        if origin not in ("keras", "tf_keras"):
            raise InputError(f"Layer {layer.name!r} cannot be converted: {kind} is a class of {origin}, not of Keras.")
    structure = read_structure([Layer(type(layer).__name__, layer.get_config()) for layer in layers])
    if type(model).__name__ != "Sequential":
        _check_chain(model, layers)
    return [layer for layer in layers if layer.weights], structure


def _check_chain(model: Any, layers: list[Any]) -> None:
    """Checks that the output of each layer is the only input of the next."""
    tensor = model.inputs[0]
    for layer in layers:
        if not _same_tensor(layer.input, tensor):
            raise InputError(f"Layer {layer.name!r} cannot be converted: its input must be only the layer before it.")
        tensor = layer.output
    if len(model.inputs) > 1 or len(model.outputs) > 1 or not _same_tensor(model.outputs[0], tensor):
        raise InputError("The model must have one input and one output; jaxlm's is one chain of layers.")


def _same_tensor(first: Any, second: Any) -> bool:
    return first is second or getattr(first, "name", 0) == getattr(second, "name", 1)


def keras_predictor(model: Any, name: str = "Keras model") -> Predictor:
    """Returns the `Predictor` of a live Keras model, also of one that `build` made with `single_step`."""
    if len(model.inputs) > 1:
        return _step_predictor(model, name)
    layers, structure = read_live_model(model)

    def predict(ids: np.ndarray) -> Predictions:
        with _zero_states(layers):
            outputs = to_numpy(model(ids))
        outputs = outputs[:, None] if structure.last_only else outputs
        states: dict[str, np.ndarray] = {}
        hidden: Any = ids
        with _zero_states(layers):
            for layer in model.layers[: model.layers.index(layers[-1])]:
                hidden = hidden if type(layer).__name__ == "InputLayer" else layer(hidden)
                if type(layer).__name__ == "LSTM":
                    h = to_numpy(hidden)
                    states[f"h_{len(states) + 1}"] = h if h.ndim == 2 else h[:, -1]
        return Predictions(log_probabilities(outputs, structure.logits), states)

    return Predictor(
        name,
        layers[0].get_config()["input_dim"],
        predict,
        structure.last_only,
        first_id=int(structure.mask_zero),
        batch_size=model.inputs[0].shape[0],
        sequence_length=model.inputs[0].shape[1],
        dtype=keras.backend.standardize_dtype(layers[-1].weights[0].dtype),
    )


@contextmanager
def _zero_states(layers: Sequence[Any]) -> Iterator[None]:
    """Starts stateful layers from the zero state, and gives them back the states that they had."""
    variables = [variable for layer in layers if getattr(layer, "stateful", False) for variable in states_of(layer)]
    before = [np.array(to_numpy(variable)) for variable in variables]
    for variable in variables:
        variable.assign(np.zeros(variable.shape, np.float32))
    yield
    for variable, array in zip(variables, before, strict=True):
        variable.assign(array)


def states_of(layer: Any) -> list[Any]:
    """Returns the states h and c of a stateful layer."""
    if any(state is None for state in layer.states):  # tf_keras makes them when they are needed
        layer.reset_states()
    return list(layer.states)


def abstract_predictor(model: keras.Model, weights: Sequence[Any], name: str) -> Predictor:
    """Returns the `Predictor` of an `abstract` model, given its weights, as tensors in Keras' order.

    Raises:
      InputError: the weights do not fit the model.
    """
    expected, shapes = ([tuple(tensor.shape) for tensor in tensors] for tensors in (model.weights, weights))
    if shapes != expected:
        raise InputError(f"{name}: expected weights of shapes {expected} for its layers. Received: {shapes}.")
    predictor = keras_predictor(model, name)

    def predict(ids: np.ndarray) -> Predictions:
        with keras.StatelessScope(state_mapping=list(zip(model.weights, weights, strict=True))):
            return predictor.predict(ids)

    return predictor._replace(predict=predict)


def _step_predictor(model: Any, name: str) -> Predictor:
    if not isinstance(model.input, dict) or not isinstance(model.output, dict):
        raise InputError(f"{name} has several inputs; expected one chain of layers, or a single-step model of jaxlm's.")
    result, states = result_and_states(name, model.input, model.output)
    zeros = {key: np.zeros((1, model.input[key].shape[-1]), model.input[key].dtype) for key in states}

    def step(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = model({"token_ids": ids[:, None]} | carry)
        return {key: to_numpy(tensor) for key, tensor in outputs.items()}

    vocab_size = int(model.output[result].shape[-1])
    return step_predictor(name, vocab_size, step, zeros, result, str(model.weights[0].dtype))


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a tensor of Keras 3, with any backend, or of Keras 2 as an array."""
    if hasattr(tensor, "numpy") and not hasattr(tensor, "detach"):
        return tensor.numpy()
    return np.asarray(keras.ops.convert_to_numpy(tensor))
