"""Which Keras models jaxlm can represent. Only the configs of the layers are read; nothing in them is executed."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.errors import InputError

SUPPORTED = (
    "Embedding -> (Dropout) -> LSTM, one or more -> (Dropout) -> (Dense, linear, without bias)"
    " -> Dense (softmax or logits)"
)
LETTERS = {
    "Embedding": "E",
    "Dropout": "r",
    "SpatialDropout1D": "r",
    "LSTM": "L",
    "Dense": "D",
    "Activation": "A",
    "Softmax": "A",
}
REQUIRED = {  # what jaxlm's LSTM does; a setting unknown to a Keras version has its default
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "go_backwards": False,
    "return_state": False,
    "recurrent_dropout": 0.0,
}


class Layer(NamedTuple):
    """A Keras layer, from a live model or a file."""

    kind: str  # name of its class, such as "LSTM"
    config: dict[str, Any]  # as from its get_config()


class Structure(NamedTuple):
    """All that matters of a Keras model, except its sizes."""

    layers: tuple[Layer, ...]  # those with weights: Embedding, LSTM, ..., Dense
    dropout: float
    logits: bool  # no softmax at the end
    last_only: bool  # the last LSTM returns only its last output
    mask_zero: bool


def read_structure(layers: Sequence[Layer]) -> Structure:
    """Checks that jaxlm can represent layers that follow each other.

    Raises:
      InputError: it cannot; names the layer and the reason.
    """
    layers = [_unwrap(layer) for layer in layers if layer.kind != "InputLayer"]
    for layer in layers:
        _check_layer(layer)
    order = "".join(LETTERS[layer.kind] for layer in layers)
    if not re.fullmatch(r"Er*(Lr*)+D?DA?", order):
        kinds = " -> ".join(layer.kind for layer in layers)
        raise InputError(f"The model's layers are {kinds}; jaxlm can represent {SUPPORTED}.")
    weighted = tuple(layer for layer in layers if LETTERS[layer.kind] in "ELD")
    lstms = [layer for layer in weighted if layer.kind == "LSTM"]
    embedding, dense = weighted[0].config, weighted[-1]
    _check_lstms(lstms)
    _check_dense(weighted[1 + len(lstms) :], embedding["input_dim"])
    rates = {layer.config[name] for layer in layers for name in ("rate", "dropout") if layer.config.get(name)}
    if len(rates) > 1:
        raise InputError(f"All dropout rates of the model must be equal; found {sorted(rates)}.")
    activations = [_activation(layer) for layer in layers[layers.index(dense) :]]  # of Dense, and after it
    if activations[:-1] == ["softmax"]:
        raise _refusal(layers[-1], "there is already a softmax before it")
    last_only = not lstms[-1].config.get("return_sequences")
    mask_zero = bool(embedding.get("mask_zero"))
    return Structure(weighted, float(max(rates, default=0.0)), activations[-1] != "softmax", last_only, mask_zero)


def _check_lstms(lstms: Sequence[Layer]) -> None:
    for layer in lstms[:-1]:
        if not layer.config.get("return_sequences"):
            raise _refusal(layer, "return_sequences must be True below another LSTM")
    units = {layer.config["units"] for layer in lstms}
    if len(units) > 1:
        raise _refusal(lstms[1], f"all LSTM layers must have the same number of units; found {sorted(units)}")


def _check_dense(layers: Sequence[Layer], vocab_size: int) -> None:
    """Checks the softmax, and the bottleneck before it if there is one."""
    *bottleneck, softmax = layers
    if not softmax.config.get("use_bias", True):
        raise _refusal(softmax, "jaxlm's softmax needs use_bias=True")
    for layer in bottleneck:
        if layer.config.get("use_bias", True) or _activation(layer) != "linear":
            raise _refusal(layer, "a layer between LSTM and softmax must be linear and have no bias")
    if softmax.config["units"] != vocab_size:
        raise _refusal(softmax, f"it has {softmax.config['units']} units, but the embedding has {vocab_size} words")


def _unwrap(layer: Layer) -> Layer:
    """Treats a TimeDistributed Dense as a Dense."""
    inner = layer.config.get("layer")
    if layer.kind == "TimeDistributed" and isinstance(inner, dict) and inner.get("class_name") == "Dense":
        return Layer("Dense", inner["config"] | {"name": layer.config["name"]})
    return layer


def _check_layer(layer: Layer) -> None:
    if layer.kind not in LETTERS:
        raise _refusal(layer, f"jaxlm has no {layer.kind}; it can represent {SUPPORTED}")
    if layer.kind == "LSTM":
        for name, expected in REQUIRED.items():
            value = layer.config.get(name, expected)
            if value != expected:
                raise _refusal(layer, f"jaxlm's LSTM needs {name}={expected!r}; found {_short(value)}")
    if LETTERS[layer.kind] in "DA" and _activation(layer) not in ("softmax", "linear"):
        raise _refusal(layer, f"a jaxlm model ends in a softmax or in logits, not in {_short(_activation(layer))}")
    if layer.kind == "Softmax" and layer.config.get("axis", -1) != -1:
        raise _refusal(layer, "its softmax must be over the last axis")


def _activation(layer: Layer) -> Any:
    return "softmax" if layer.kind == "Softmax" else layer.config.get("activation", "linear")


def _refusal(layer: Layer, reason: str) -> InputError:
    return InputError(f"Layer {layer.config.get('name', '?')!r} ({layer.kind}) cannot be converted: {reason}.")


def _short(value: Any) -> str:
    return repr(value.get("class_name", "?") if isinstance(value, dict) else value)[:60]


def layers_of_json(config: Any) -> list[Layer]:
    """Reads the layers from a model's JSON config (Keras 2 or 3, Sequential or functional).

    Raises:
      InputError: it is not such a config, or the layers are not one chain.
    """
    try:
        if config["class_name"] not in ("Sequential", "Functional", "Model"):
            raise InputError(f"The model must be Sequential or Functional; found {config['class_name']}.")
        inner = config["config"]
        entries = inner["layers"] if isinstance(inner, dict) else inner  # a list in the first versions of Keras
        layers, previous = [], None
        for entry in entries:
            settings = dict(entry["config"]) | {"name": entry.get("name") or entry["config"].get("name", "?")}
            layer = Layer(entry["class_name"], settings)
            inbound = _names(entry.get("inbound_nodes", []))
            if previous and config["class_name"] != "Sequential" and inbound != [previous]:
                raise _refusal(layer, f"its input must be only the layer before it, {previous!r}; found {inbound}")
            layers.append(layer)
            previous = settings["name"]
        if not all(isinstance(layer.kind, str) for layer in layers):
            raise TypeError("class_name")
        return layers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The config of the Keras model is damaged: {error!r}") from error


def _names(nodes: Any) -> list[str]:
    """Returns the layer names in inbound_nodes: each is a [name, node, tensor] somewhere in lists and dicts."""
    if isinstance(nodes, dict):
        nodes = list(nodes.values())
    if not isinstance(nodes, list):
        return []
    if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
        return [nodes[0]]
    return [name for node in nodes for name in _names(node)]


def check_classes(config: Any) -> None:
    """Checks that a config names no classes but Keras' own, at any depth.

    Raises:
      InputError: it does; Keras would have to import and run them.
    """
    values = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    if isinstance(config, dict) and "class_name" in config:
        module, registered = config.get("module") or "keras", config.get("registered_name")
        if str(module).split(".")[0] != "keras" or registered and ">" in str(registered):
            name = f"{config['class_name']} of {registered or module}"
            raise InputError(f"The model cannot be converted: {name} is not a class of Keras, and is not executed.")
    for value in values:
        check_classes(value)


def is_step_model(config: Any) -> bool:
    """Whether a config is that of a single-step model of jaxlm's, judging by its inputs and layers."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    kinds = {layer.get("class_name") for layer in layers}
    names = [str(layer.get("name")) for layer in layers if layer.get("class_name") == "InputLayer"]
    known = kinds <= {"InputLayer", "Embedding", "LSTM", "Dense", "Activation"}
    return known and len(names) > 2 and all(re.fullmatch(r"token_ids|[hc]_\d+", name) for name in names)
