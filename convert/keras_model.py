"""The Keras model of a config, and the config and weights of a Keras model."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np

from convert import comparison
from convert.keras_layers import Layer, Structure, read_structure
from convert.weights import ALIGNMENT, aligned_copy, from_keras_list, language_model_weights
from convert.weights import to_keras as weights_to_keras
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


class Form(NamedTuple):
    """What an exported model gives."""

    logits: bool = False  # no softmax at the end
    last_only: bool = False  # [batch, vocab_size], of the next word alone
    single_step: bool = False  # one word and the states in, probabilities and the states out
    dtype: str = "float32"  # of the weights; a softmax is in float32 always


PLAIN = Form()


def build(config: ModelConfig, form: Form = PLAIN) -> keras.Model:
    """Builds an ordinary functional Keras model with dynamic batch and time.

    Args:
      config: shape of the model. Dropout is left out: it does nothing in inference.
      form: what it gives.

    Returns:
      A model from ids `[batch, time]` int32 to probabilities `[batch, time, vocab_size]` float32.
      With `single_step`, from `{"token_ids": [batch, 1], "h_1": [batch, hidden_size], "c_1", ...}` to
      `{"probabilities": [batch, vocab_size], "h_1", "c_1", ...}`.
    """
    inputs = keras.Input((1 if form.single_step else None,), dtype="int32", name="token_ids")
    states_in: dict[str, Any] = {}
    states_out: dict[str, Any] = {}
    initializer = "orthogonal" if form.dtype == "float32" else "glorot_uniform"  # there is no QR in 16 bits
    outputs = keras.layers.Embedding(config.vocab_size, config.embedding_size, dtype=form.dtype, name="embedding")(
        inputs
    )
    for n in range(1, config.num_layers + 1):
        sequences = n < config.num_layers or not (form.last_only or form.single_step)
        lstm = keras.layers.LSTM(
            config.hidden_size,
            return_sequences=sequences,
            return_state=form.single_step,
            dtype=form.dtype,
            recurrent_initializer=initializer,
            name=f"lstm_{n}",
        )
        if form.single_step:
            states = {f"{s}_{n}": keras.Input((config.hidden_size,), dtype=form.dtype, name=f"{s}_{n}") for s in "hc"}
            outputs, *new = lstm(outputs, initial_state=list(states.values()))
            states_in |= states
            states_out |= dict(zip(states, new, strict=True))
        else:
            outputs = lstm(outputs)
    if config.projection_size:
        projection = keras.layers.Dense(config.projection_size, use_bias=False, dtype=form.dtype, name="projection")
        outputs = projection(outputs)
    whole = form.dtype == "float32" and not form.logits
    activation = "softmax" if whole else None
    outputs = keras.layers.Dense(config.vocab_size, activation=activation, dtype=form.dtype, name="softmax")(outputs)
    if not whole and not form.logits:
        outputs = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(outputs)
    if not form.single_step:
        return keras.Model(inputs, outputs, name="language_model")
    result = {"logits" if form.logits else "probabilities": outputs}
    return keras.Model({"token_ids": inputs} | states_in, result | states_out, name="language_model_step")


def abstract(make: Callable[[], keras.Model]) -> keras.Model:
    """Makes a Keras model whose variables have shapes and take no memory; it runs in a scope that has their values.

    In a thread of its own: Keras remembers, in each thread, the variables without values, and gives them values as
    soon as that thread makes another.
    """

    def in_scope() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_scope).result()


def tensor_of(array: np.ndarray) -> Any:
    """Returns an array as a tensor of the backend: of its own memory where TensorFlow can take that, else copied once.

    TensorFlow's own conversion makes two copies, and keeps both for as long as the tensor lives.
    """
    if keras.backend.backend() != "tensorflow" or array.dtype.kind != "f":
        return keras.ops.convert_to_tensor(array)
    import tensorflow as tf

    if not array.flags.c_contiguous or not array.flags.writeable or array.ctypes.data % ALIGNMENT:
        array = aligned_copy(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def fill(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Assigns weights by their Keras paths; each path must be there."""
    variables = {variable.path: variable for variable in model.weights}
    for path, array in weights.items():
        variables[path].assign(array)


def to_keras(model: LanguageModel, form: Form = PLAIN) -> keras.Model:
    """Returns an ordinary Keras model with the weights of a `LanguageModel`.

    Args:
      model: the language model.
      form: what the Keras model gives.

    Raises:
      InputError: a weight is NaN or infinite.
    """
    weights = weights_to_keras(language_model_weights(model), model.config)  # checked before anything is built
    keras_model = build(model.config, form)
    fill(keras_model, weights)
    return keras_model


def from_keras(model: Any) -> LanguageModel:
    """Makes a `LanguageModel` of a live Keras model (Keras 3 or `tf_keras`), and proves it.

    Args:
      model: Sequential or functional, built: Embedding -> (Dropout) -> LSTM, one or more -> (Dropout)
        -> Dense with a softmax or logits. Its ids should fall by frequency, as jaxlm's sampler takes
        them to; where they do not, train on other ids, see `frequency_order`.

    Returns:
      The language model, float32; with `mask_zero` id 0 is an ordinary word to it.

    Raises:
      InputError: a layer cannot be represented (named, with the reason), a weight is not finite, or
        the log-probabilities of the two models differ.
    """
    layers, structure = read(model)
    language_model = from_keras_list([array for layer in layers for array in layer.get_weights()], structure.dropout)
    comparison.prove(comparison.of_language_model(language_model), subject(model))
    return language_model


def load_into_keras(language_model: LanguageModel, model: Any) -> None:
    """Puts the weights of a `LanguageModel` into a live Keras model, layer by layer, and proves it.

    Args:
      language_model: such as `from_keras` made of the same model.
      model: of the same sizes; its names, losses and compilation stay as they are.

    Raises:
      InputError: the sizes differ, or what `from_keras` raises.
    """
    layers, _ = read(model)
    weights = list(weights_to_keras(language_model_weights(language_model), language_model.config).items())
    shapes = [array.shape for layer in layers for array in layer.get_weights()]
    if shapes != [array.shape for _, array in weights]:
        expected = [array.shape for _, array in weights]
        raise InputError(f"The Keras model is of other sizes: expected weights {expected}. Received: {shapes}.")
    for layer in layers:
        arrays = [weights.pop(0)[1] for _ in layer.weights]
        layer.set_weights(arrays)
    comparison.prove(comparison.of_language_model(language_model), subject(model))


def read(model: Any) -> tuple[list[Any], Structure]:
    """Returns the layers that hold weights, in order, and the structure of a live model.

    Raises:
      InputError: the model is not built, not one chain of layers, or jaxlm cannot represent it.
    """
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError("The Keras model is not built yet; call it once, or model.build((None, None)).")
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    for layer in layers:
        origin = type(layer).__module__.split(".")[0]
        if origin not in ("keras", "tf_keras"):
            raise InputError(
                f"Layer {layer.name!r} cannot be converted: {type(layer).__name__} is a class of {origin}, not Keras'."
            )
    structure = read_structure([Layer(type(layer).__name__, layer.get_config()) for layer in layers])
    if type(model).__name__ != "Sequential":
        _check_chain(model, layers)
    return [layer for layer in layers if layer.weights], structure


def _check_chain(model: Any, layers: list[Any]) -> None:
    """Raises where the output of a layer is not the whole input of the next."""
    tensor = model.inputs[0]
    for layer in layers:
        if not _same(layer.input, tensor):
            raise InputError(f"Layer {layer.name!r} cannot be converted: its input is not the layer before it alone.")
        tensor = layer.output
    if len(model.inputs) > 1 or len(model.outputs) > 1 or not _same(model.outputs[0], tensor):
        raise InputError("The model has more than one input or output; jaxlm's is one chain of layers.")


def _same(first: Any, second: Any) -> bool:
    return first is second or getattr(first, "name", 0) == getattr(second, "name", 1)


def abstract_subject(model: keras.Model, weights: Sequence[Any], name: str) -> comparison.Subject:
    """Returns an `abstract` model and its weights, tensors in Keras' order, as a `Subject`.

    Raises:
      InputError: they do not fit each other.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (model.weights, weights)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{name}: its layers have weights of the shapes {shapes[0]}, and it holds {shapes[1]}.")
    found = subject(model, name)

    def predict(ids: np.ndarray) -> comparison.Predictions:
        with keras.StatelessScope(state_mapping=list(zip(model.weights, weights, strict=True))):
            return found.predict(ids)

    return found._replace(predict=predict)


def subject(model: Any, name: str = "Keras model") -> comparison.Subject:
    """Returns a live Keras model as a `Subject` of comparisons; `single_step` models of `build` too."""
    if len(model.inputs) > 1:
        return _single_step_subject(model, name)
    layers, structure = read(model)

    def predict(ids: np.ndarray) -> comparison.Predictions:
        outputs = _numpy(model(ids))
        outputs = outputs[:, None] if structure.last_only else outputs
        states: dict[str, np.ndarray] = {}
        hidden: Any = ids
        for layer in model.layers[: model.layers.index(layers[-1])]:
            hidden = hidden if type(layer).__name__ == "InputLayer" else layer(hidden)
            if type(layer).__name__ == "LSTM":
                h = _numpy(hidden)
                states[f"h_{len(states) + 1}"] = h if h.ndim == 2 else h[:, -1]
        return comparison.Predictions(comparison.log_probabilities(outputs, structure.logits), states)

    vocab_size = layers[0].get_config()["input_dim"]
    precision = keras.backend.standardize_dtype(layers[-1].weights[0].dtype)
    return comparison.Subject(name, vocab_size, predict, structure.last_only, int(structure.mask_zero), precision)


def _single_step_subject(model: Any, name: str) -> comparison.Subject:
    results = {"logits", "probabilities"} & set(model.output if isinstance(model.output, dict) else ())
    if len(results) != 1:
        raise InputError(f"{name} has more than one input; expected a chain of layers, or a single step of jaxlm's.")
    (result,) = results
    states = {key: (tensor.shape[-1], tensor.dtype) for key, tensor in model.input.items() if key != "token_ids"}

    def step(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = model({"token_ids": ids[:, None]} | carry)
        return {key: _numpy(tensor) for key, tensor in outputs.items()}

    zeros = {key: np.zeros((1, width), dtype) for key, (width, dtype) in states.items()}
    vocab_size = int(model.output[result].shape[-1])
    precision = next(iter(model.weights)).dtype
    return comparison.step_subject(name, vocab_size, step, zeros, result, str(precision))


def _numpy(tensor: Any) -> np.ndarray:
    return (
        tensor.numpy()
        if hasattr(tensor, "numpy") and not hasattr(tensor, "detach")
        else np.asarray(keras.ops.convert_to_numpy(tensor))
    )
