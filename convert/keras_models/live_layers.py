"""Live Keras models (Keras 3 or `tf_keras`): their layers in order, weights, states and predictions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from convert.checks.predictor import Predictions, Predictor, log_probabilities, result_and_states, step_predictor
from convert.keras_models.json_config import MODELS, Layer, layers_of_json
from convert.keras_models.supported_layers import Structure, read_structure
from jaxlm.errors import InputError

WEIGHTS = ("embeddings", "kernel", "recurrent_kernel", "bias")  # in Keras' order
LIBRARIES = ("keras", "tf_keras", "keras_hub", "jax", "tensorflow", "torch")  # in which a name has one meaning


def library_name(thing: Any) -> str:
    """Returns the name of a function, or of an object's class; "" if Keras or its backends do not define it."""
    kind = thing if hasattr(thing, "__name__") else type(thing)
    return kind.__name__ if str(kind.__module__).split(".")[0] in LIBRARIES else ""


def definer(thing: Any, method: str) -> str:
    """Returns the name of the class of Keras that defines a method of an object; "" if a user does."""
    kinds = (kind for kind in type(thing).__mro__ if method in vars(kind))
    return "" if method in vars(thing) else library_name(next(kinds, None))


def read_live_model(model: Any) -> tuple[list[Any], Structure]:
    """Returns the layers that have weights, in order, and the structure of a live model.

    Raises:
      InputError: the model is not built, is not one chain of layers, or jaxlm cannot represent it.
    """
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError("The Keras model is not built yet; call it once, or use `model.build((None, None))`.")
    layers = chain(model)
    for layer in layers:
        for part in (layer, getattr(layer, "layer", None), getattr(layer, "cell", None)):
            _check_origin(layer.name, part)
    entries = layers_of_json({"class_name": type(model).__name__, "config": _config(model)})
    kinds = [entry.kind for entry in entries if entry.kind != "InputLayer"]
    if kinds != [type(layer).__name__ for layer in layers]:
        raise InputError(
            f"Invalid Keras model: expected the layers of its config, {' -> '.join(kinds)}."
            f" Received: {[layer.name for layer in layers]}."
        )
    inputs = Layer("InputLayer", {"batch_shape": tuple(model.inputs[0].shape)})
    return [layer for layer in layers if weight_variables(layer)], read_structure([inputs, *entries])


def chain(model: Any) -> list[Any]:
    """Returns the layers of a model, those of models inside it in their place."""
    layers: list[Any] = []
    for layer in model.layers:
        if type(layer).__name__ in MODELS:
            _check_origin(layer.name, layer)
            layers += chain(layer)
        elif type(layer).__name__ != "InputLayer":
            layers.append(layer)
    return layers


def _config(model: Any) -> Any:
    try:
        return model.get_config()
    except Exception as error:  # subclassed models, and layers whose class has no config
        raise InputError(f"Invalid Keras model: its `get_config()` fails: {error!r}") from error


def _check_origin(name: str, layer: Any) -> None:
    """Raises `InputError` if a user defines the class of a layer, or one of its activations."""
    parts = [layer] if hasattr(layer, "get_config") else []
    parts += [getattr(layer, name, None) for name in ("activation", "recurrent_activation")]
    for part in parts:
        if part is not None and not library_name(part):
            kind = part if hasattr(part, "__name__") else type(part)
            raise InputError(
                f"Layer {name!r} cannot be converted: {kind.__name__} is defined in {kind.__module__}, not in Keras."
            )


def require_plain_weights(layer: Any, advice: str, name: str = "") -> None:
    """Raises `InputError` if a layer of a named model, or the layer inside of it, has LoRA or is quantized."""
    inner = getattr(layer, "layer", layer)
    mode = getattr(inner, "quantization_mode", None)
    if mode or getattr(inner, "lora_enabled", False):
        start, problem = f"{name}: layer" if name else "Layer", f"is quantized to {mode}" if mode else "has LoRA"
        raise InputError(f"{start} {layer.name!r} {problem}; {advice}.")


def weight_variables(layer: Any) -> list[Any]:
    """Returns the weights of a layer in Keras' order, without seeds and states."""
    layer = layer.layer if type(layer).__name__ == "TimeDistributed" else layer
    holder = layer.cell if hasattr(getattr(layer, "cell", None), "kernel") else layer
    variables = [getattr(holder, name, None) for name in WEIGHTS]
    return [variable for variable in variables if variable is not None]


def keras_predictor(model: Any, name: str = "Keras model") -> Predictor:
    """Returns the `Predictor` of a live Keras model, or of a single-step model of `build`.

    It reads from zero states, and restores the model's states afterwards.
    """
    if len(model.inputs) > 1:
        return _step_predictor(model, name)
    weighted, structure = read_live_model(model)
    layers = chain(model)

    def predict(ids: np.ndarray) -> Predictions:
        with zero_states(layers):
            outputs = as_array(model(ids))
        outputs = outputs[:, None] if structure.last_only else outputs
        states: dict[str, np.ndarray] = {}
        hidden: Any = ids
        with zero_states(layers):
            for layer in layers[: layers.index(weighted[-1])]:
                hidden = layer(hidden)
                hidden = hidden[0] if isinstance(hidden, list | tuple) else hidden  # return_state
                if type(layer).__name__ in ("LSTM", "RNN"):
                    h = as_array(hidden)
                    states[f"h_{len(states) + 1}"] = h if h.ndim == 2 else h[:, -1]
        return Predictions(log_probabilities(outputs, structure.logits), states)

    dtype = structure.dtype.replace("float64", "float32")
    last_only, first_id, size = structure.last_only, int(structure.mask_zero), structure.config.vocab_size
    return Predictor(name, size, predict, last_only, first_id, dtype, structure.shape)


@contextmanager
def zero_states(layers: Sequence[Any]) -> Iterator[None]:
    """Sets the states of stateful layers to zero, and restores them at the end."""
    states = [state for layer in layers if getattr(layer, "stateful", False) for state in states_of(layer)]
    before = [np.array(as_array(state)) for state in states]
    for state, array in zip(states, before, strict=True):
        state.assign(np.zeros_like(array))
    try:
        yield
    finally:
        for state, array in zip(states, before, strict=True):
            state.assign(array)


def states_of(layer: Any) -> list[Any]:
    """Returns the states h and c of a stateful layer."""
    if any(state is None for state in layer.states):  # Keras 2 makes them when they are needed
        layer.reset_states()
    return list(layer.states)


def abstract_predictor(model: keras.Model, weights: Sequence[Any], name: str) -> Predictor:
    """Returns the `Predictor` of an `abstract` model, given its weights, as tensors in Keras' order.

    Raises:
      InputError: the weights do not fit the model.
    """
    for layer in chain(model):
        advice = "build the model without it, and load the weights of `model.save_weights`, which merges LoRA"
        require_plain_weights(layer, advice, name)
    variables = [variable for layer in chain(model) for variable in weight_variables(layer)]
    expected, shapes = ([tuple(tensor.shape) for tensor in tensors] for tensors in (variables, weights))
    if shapes != expected:
        raise InputError(f"{name}: expected weights of shapes {expected} for its layers. Received: {shapes}.")
    predictor = keras_predictor(model, name)

    def predict(ids: np.ndarray) -> Predictions:
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return predictor.predict(ids)

    return predictor._replace(predict=predict)


def _step_predictor(model: Any, name: str) -> Predictor:
    if not isinstance(model.input, dict) or not isinstance(model.output, dict):
        raise InputError(f"{name} has several inputs; expected one input of ids, or a single-step model of jaxlm.")
    result, states = result_and_states(name, model.input, model.output)
    zeros = {key: np.zeros((1, model.input[key].shape[-1]), model.input[key].dtype) for key in states}

    def step(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = model({"token_ids": ids[:, None]} | carry)
        return {key: as_array(tensor) for key, tensor in outputs.items()}

    vocab_size = int(model.output[result].shape[-1])
    return step_predictor(name, vocab_size, step, zeros, result, str(model.weights[0].dtype))


def as_array(tensor: Any) -> np.ndarray:
    """Returns a tensor of Keras 3, with any backend, or of Keras 2 as an array."""
    if hasattr(tensor, "numpy") and not hasattr(tensor, "detach"):
        return tensor.numpy()
    return np.asarray(keras.ops.convert_to_numpy(tensor))
