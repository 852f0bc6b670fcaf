"""Which Keras layers jaxlm can represent: read from their configs alone, so that nothing of a file is run."""

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
REQUIRED = {  # what jaxlm's LSTM does; a setting that a Keras version does not know has its default
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "go_backwards": False,
    "return_state": False,
    "recurrent_dropout": 0.0,
}


class Layer(NamedTuple):
    """One Keras layer, from a live model or a file."""

    kind: str  # name of its class, such as "LSTM"
    config: dict[str, Any]  # as from its get_config()


class Structure(NamedTuple):
    """What a Keras model is, but for its sizes."""

    layers: tuple[Layer, ...]  # those with weights: Embedding, LSTM, ..., Dense
    dropout: float
    logits: bool  # no softmax at the end
    last_only: bool  # the last LSTM returns its last output only
    mask_zero: bool


def read_structure(layers: Sequence[Layer]) -> Structure:
    """Checks that layers, one after the other, are a model of jaxlm.

    Raises:
      InputError: they are not; names the layer and the reason.
    """
    layers = [_unwrap(layer) for layer in layers if layer.kind != "InputLayer"]
    for layer in layers:
        _check(layer)
    order = "".join(LETTERS[layer.kind] for layer in layers)
    if not re.fullmatch(r"Er*(Lr*)+D?DA?", order):
        kinds = " -> ".join(layer.kind for layer in layers)
        raise InputError(f"The model's layers are {kinds}; jaxlm can represent {SUPPORTED}.")
    weighted = tuple(layer for layer in layers if LETTERS[layer.kind] in "ELD")
    lstms = [layer for layer in weighted if layer.kind == "LSTM"]
    for layer in lstms[:-1]:
        if not layer.config.get("return_sequences"):
            raise _refusal(layer, "return_sequences must be True below another LSTM")
    units = {layer.config["units"] for layer in lstms}
    if len(units) > 1:
        raise _refusal(lstms[1], f"all LSTM layers of a jaxlm model are of one size, these are {sorted(units)}")
    embedding, dense = weighted[0].config, weighted[-1]
    if not dense.config.get("use_bias", True):
        raise _refusal(dense, "jaxlm's softmax has a bias for each word, this one use_bias=False")
    for layer in weighted[1 + len(lstms) : -1]:
        if layer.config.get("use_bias", True) or _activation(layer) != "linear":
            raise _refusal(layer, "a layer between LSTM and softmax has to be linear and without bias")
    if dense.config["units"] != embedding["input_dim"]:
        raise _refusal(dense, f"it has {dense.config['units']} units, and the embedding {embedding['input_dim']} words")
    rates = {layer.config[name] for layer in layers for name in ("rate", "dropout") if layer.config.get(name)}
    if len(rates) > 1:
        raise InputError(f"The model has dropout rates {sorted(rates)}; jaxlm has one for all places.")
    last = [_activation(layer) for layer in layers[layers.index(dense) :]]
    if last[:-1] == ["softmax"]:
        raise _refusal(layers[-1], "a softmax before it already")
    last_only = not lstms[-1].config.get("return_sequences")
    return Structure(
        weighted, float(max(rates, default=0.0)), last[-1] != "softmax", last_only, bool(embedding.get("mask_zero"))
    )


def _unwrap(layer: Layer) -> Layer:
    """A TimeDistributed Dense is a Dense."""
    inner = layer.config.get("layer")
    if layer.kind == "TimeDistributed" and isinstance(inner, dict) and inner.get("class_name") == "Dense":
        return Layer("Dense", inner["config"] | {"name": layer.config["name"]})
    return layer


def _check(layer: Layer) -> None:
    if layer.kind not in LETTERS:
        raise _refusal(layer, f"jaxlm has no {layer.kind}; it can represent {SUPPORTED}")
    if layer.kind == "LSTM":
        for name, expected in REQUIRED.items():
            value = layer.config.get(name, expected)
            if value != expected:
                raise _refusal(layer, f"jaxlm's LSTM has {name}={expected!r}, this one {_short(value)}")
    if LETTERS[layer.kind] in "DA" and _activation(layer) not in ("softmax", "linear"):
        raise _refusal(layer, f"jaxlm ends in a softmax or in logits, not in {_short(_activation(layer))}")
    if layer.kind == "Softmax" and layer.config.get("axis", -1) != -1:
        raise _refusal(layer, "its softmax is not over the last axis")


def _activation(layer: Layer) -> Any:
    return "softmax" if layer.kind == "Softmax" else layer.config.get("activation", "linear")


def _refusal(layer: Layer, reason: str) -> InputError:
    return InputError(f"Layer {layer.config.get('name', '?')!r} ({layer.kind}) cannot be converted: {reason}.")


def _short(value: Any) -> str:
    return repr(value.get("class_name", "?") if isinstance(value, dict) else value)[:60]


def layers_of_json(config: Any) -> list[Layer]:
    """Reads the layers of a model's JSON config (Keras 2 or 3, Sequential or functional).

    Raises:
      InputError: it is no such config, or the layers are not one chain.
    """
    try:
        if config["class_name"] not in ("Sequential", "Functional", "Model"):
            raise InputError(f"The model is a {config['class_name']}, expected Sequential or Functional.")
        inner = config["config"]
        entries = inner["layers"] if isinstance(inner, dict) else inner  # the first Keras versions had a list
        layers, previous = [], None
        for entry in entries:
            settings = dict(entry["config"]) | {"name": entry.get("name") or entry["config"].get("name", "?")}
            layer = Layer(entry["class_name"], settings)
            inbound = _names(entry.get("inbound_nodes", []))
            if previous and config["class_name"] != "Sequential" and inbound != [previous]:
                raise _refusal(layer, f"its input is {inbound}, expected the layer before it, [{previous!r}]")
            layers.append(layer)
            previous = settings["name"]
        if not all(isinstance(layer.kind, str) for layer in layers):
            raise TypeError("class_name")
        return layers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The file does not hold the config of a Keras model: {error!r}") from error


def _names(nodes: Any) -> list[str]:
    """The layer names in inbound_nodes, [name, node, tensor] somewhere in lists and dicts."""
    if isinstance(nodes, dict):
        nodes = list(nodes.values())
    if not isinstance(nodes, list):
        return []
    if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
        return [nodes[0]]
    return [name for node in nodes for name in _names(node)]
