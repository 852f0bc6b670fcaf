"""Keras models that jaxlm can represent, checked by the configs of their layers. Nothing in them is executed."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from convert.keras_models.json_config import FUNCTIONS, Layer, refusal
from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig
from jaxlm.errors import InputError

SUPPORTED = (
    "Embedding -> (Dropout) -> LSTM, one or more -> (Dense: linear, relu or tanh; Dropout) -> Dense (softmax or logits)"
)
LETTERS = {
    "Embedding": "E",
    "Dropout": "r",
    "SpatialDropout1D": "r",
    "GaussianNoise": "r",
    "LSTM": "L",
    "Dense": "D",
    "Activation": "A",
    "Softmax": "A",
    "ReLU": "A",
}
INNER = {"Dense", "Dropout", "Activation", "Softmax", "ReLU"}  # layers that TimeDistributed does not change
REQUIRED = {  # settings of jaxlm's LSTM; one that a Keras version lacks has its default
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "go_backwards": False,
    "time_major": False,
}
SIZES = {"Embedding": ("input_dim", "output_dim"), "LSTM": ("units",), "Dense": ("units",)}
PLAIN_RELU = {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}
DTYPES = {"float32": 0, "float64": 0, "float16": 1, "bfloat16": 2}  # from precise to coarse


class Structure(NamedTuple):
    """A supported Keras model: its layers, their config, and its settings."""

    layers: tuple[Layer, ...]  # those with weights: Embedding, LSTM, ..., Dense
    config: ModelConfig
    logits: bool  # no softmax at the end
    last_only: bool  # the last LSTM returns only its last output
    mask_zero: bool
    dtype: str  # of the computation, the coarsest of its layers
    shape: tuple[int | None, int | None]  # batch size and length, if they are fixed
    ignored: tuple[str, ...]  # settings that training ignores
    assumed: tuple[str, ...]  # settings that the config lacks


def read_structure(layers: Sequence[Layer]) -> Structure:
    """Checks that jaxlm can represent a chain of layers.

    Raises:
      InputError: it cannot; the message names the layer and the reason.
    """
    shape = _fixed_shape(layers)
    original, layers = layers, [_unwrap(layer) for layer in layers if layer.kind != "InputLayer"]
    for layer in layers:
        _check_layer(layer)
    layers = [layer for layer in layers if layer.kind != "Activation" or activation(layer) != "linear"]
    order = "".join(LETTERS[layer.kind] for layer in layers)
    if not re.fullmatch(r"Er*(Lr*)+(DA?r*)*DA?", order):
        kinds = " -> ".join(layer.kind for layer in layers)
        raise InputError(f"Invalid Keras model: expected {SUPPORTED}. Received: {kinds}.")
    weighted = tuple(layer for layer in layers if LETTERS[layer.kind] in "ELD")
    embedding, softmax = weighted[0].config, weighted[-1]
    lstms = [layer for layer in weighted if layer.kind == "LSTM"]
    for layer in lstms[:-1]:
        if not layer.config.get("return_sequences"):
            raise refusal(layer, "expected return_sequences=True before another LSTM. Received: False")
    last = _last_activation(softmax, layers)
    if softmax.config["units"] != embedding["input_dim"]:
        units, words = softmax.config["units"], embedding["input_dim"]
        raise refusal(softmax, f"expected {words} units, as many as the embedding has words. Received: {units}")
    dense = _dense_settings(layers)
    try:
        config = ModelConfig(
            embedding["input_dim"],
            embedding["output_dim"],
            lstms=tuple(LSTMConfig(layer.config["units"], layer.config.get("use_bias", True)) for layer in lstms),
            dense=tuple(DenseConfig(*settings) for settings in dense),
            dropout_rates=tuple(_dropout_rates(layers)),
            softmax_bias=softmax.config.get("use_bias", True),
        )
    except InputError as error:
        raise InputError(f"The config of the Keras model is damaged: {error}") from error
    return Structure(
        weighted,
        config,
        last != "softmax",
        not lstms[-1].config.get("return_sequences"),
        bool(embedding.get("mask_zero")),
        max((_compute_dtype(layer) for layer in weighted), key=lambda name: DTYPES[name]),
        shape,
        tuple(dict.fromkeys(text for layer in layers for text in _ignored(layer))),
        tuple(dict.fromkeys(text for layer in original for text in _assumed(layer))),
    )


def _unwrap(layer: Layer) -> Layer:
    """Treats a TimeDistributed Dense as a Dense, an RNN of an LSTMCell and a CuDNNLSTM as an LSTM."""
    inner = layer.config.get("layer" if layer.kind == "TimeDistributed" else "cell")
    if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
        if layer.kind == "TimeDistributed" and str(inner.get("class_name")) in INNER:
            return layer._replace(kind=inner["class_name"], config=inner["config"] | {"name": layer.config["name"]})
        if layer.kind == "RNN" and inner.get("class_name") == "LSTMCell":
            return layer._replace(kind="LSTM", config=inner["config"] | layer.config)
    if layer.kind == "CuDNNLSTM":
        return layer._replace(kind="LSTM")
    return layer


def _check_layer(layer: Layer) -> None:
    if layer.kind not in LETTERS:
        inner = layer.config.get("layer") or layer.config.get("cell")
        of = f" of {_short(inner)}" if inner else ""
        raise refusal(layer, f"jaxlm has no {layer.kind}{of}. Supported: {SUPPORTED}")
    sizes = [name for name in SIZES.get(layer.kind, ()) if type(layer.config.get(name)) is not int]
    rates = [name for name in ("rate", "dropout") if not isinstance(layer.config.get(name), int | float | None)]
    if sizes or rates:
        raise refusal(layer, f"its config is damaged: expected a number as {(sizes + rates)[0]}")
    if layer.kind == "LSTM":
        for name, expected in REQUIRED.items():
            value = layer.config.get(name, expected)
            value = activation(layer, name) if name.endswith("activation") and name in layer.config else value
            if value != expected:
                raise refusal(layer, f"expected {name}={expected!r}. Received: {_short(value)}")
    if layer.kind == "Softmax" and layer.config.get("axis", -1) not in (-1, [-1]):
        raise refusal(layer, f"expected a softmax over the last axis. Received: axis {layer.config['axis']}")
    if layer.kind == "ReLU" and any((layer.config.get(name) or 0) != 0 for name in PLAIN_RELU):
        raise refusal(layer, f"expected a ReLU without {', '.join(PLAIN_RELU)}")
    if _compute_dtype(layer) not in DTYPES:
        raise refusal(layer, f"expected a dtype of {tuple(DTYPES)}, or mixed. Received: {_compute_dtype(layer)}")


def activation(layer: Layer, name: str = "activation") -> Any:
    """Returns a layer's activation as Keras' name of it, if it has one."""
    if layer.kind in ("Softmax", "ReLU"):
        return layer.kind.lower()
    value = layer.config.get(name)
    if isinstance(value, dict) and value.get("class_name") == "function":
        value = value.get("config")
    return "linear" if value is None else FUNCTIONS.get(value, value) if isinstance(value, str) else value


def _last_activation(softmax: Layer, layers: Sequence[Layer]) -> str:
    """Returns the activation of the last Dense layer, or of the layer after it."""
    found = [activation(layer) for layer in layers[layers.index(softmax) :]]
    for layer, value in zip(layers[layers.index(softmax) :], found, strict=True):
        if value not in ("softmax", "linear"):
            raise refusal(layer, f"expected a softmax or logits at the end. Received: {_short(value)}")
    if found[:-1] == ["softmax"]:
        raise refusal(layers[-1], "there is already a softmax before it")
    return found[-1]


def _dense_settings(layers: Sequence[Layer]) -> list[tuple[int, Any, bool]]:
    """Returns units, activation and use_bias of the Dense layers before the last; the activation may follow it."""
    last = max(i for i, layer in enumerate(layers) if layer.kind == "Dense")
    found = []
    for layer, following in zip(layers[:last], layers[1:], strict=False):
        if layer.kind != "Dense":
            continue
        name, source = activation(layer), layer
        if LETTERS[following.kind] == "A":
            if name != "linear":
                raise refusal(following, f"there is already an activation before it, {_short(name)}")
            name, source = activation(following), following
        if name not in ("linear", "relu", "tanh"):
            raise refusal(source, f"expected linear, relu or tanh before the softmax layer. Received: {_short(name)}")
        found.append((layer.config["units"], name, layer.config.get("use_bias", True)))
    return found


def _dropout_rates(layers: Sequence[Layer]) -> list[float]:
    """Returns the rate after the embedding, after each LSTM and after each Dense layer but the last.

    The keep probabilities of two dropouts in the same place are multiplied.
    """
    kept: list[float] = []
    for layer in layers:
        if layer.kind == "LSTM":
            kept[-1] *= 1.0 - float(layer.config.get("dropout") or 0.0)
        if LETTERS[layer.kind] in "ELD":
            kept.append(1.0)
        elif layer.kind in ("Dropout", "SpatialDropout1D"):
            kept[-1] *= 1.0 - float(layer.config.get("rate") or 0.0)
    return [round(1.0 - share, 12) for share in kept[:-1]]


def _compute_dtype(layer: Layer) -> str:
    """Returns the data type of a layer's computation."""
    policy = layer.config.get("dtype") or "float32"
    if isinstance(policy, dict):
        settings = policy.get("config")
        policy = settings.get("name") or settings.get("mode", "?") if isinstance(settings, dict) else settings
    return str(policy).removeprefix("mixed_")


def _fixed_shape(layers: Sequence[Layer]) -> tuple[int | None, int | None]:
    """Returns the batch size and length that the input layers and the embedding fix."""
    shape: list[int | None] = [None, None]
    for layer in layers[: 1 + next((i for i, layer in enumerate(layers) if layer.kind != "InputLayer"), 0)]:
        found = layer.config.get("batch_shape") or layer.config.get("batch_input_shape") or (None, None)
        found = (*found, None)[:2] if isinstance(found, list | tuple) else (None, None)
        found = (found[0], found[1] or layer.config.get("input_length"))
        for i, size in enumerate(found):
            shape[i] = size if isinstance(size, int) and size > 0 and not isinstance(size, bool) else shape[i]
    return shape[0], shape[1]


def _ignored(layer: Layer) -> Iterator[str]:
    """Yields the settings of a layer that training ignores."""
    name = layer.config.get("name", "?")
    if layer.config.get("trainable", True) is False:
        yield f"{name}: trainable=False"
    for key, value in layer.config.items():
        if value and (key.endswith(("_regularizer", "_constraint")) or key == "recurrent_dropout"):
            yield f"{name}: {key}={_short(value)}"
    if layer.kind == "GaussianNoise":
        yield f"{name}: GaussianNoise({_short(layer.config.get('stddev'))})"
    if layer.kind == "SpatialDropout1D" or layer.kind == "LSTM" and layer.config.get("dropout"):
        yield f"{name}: one dropout mask for all time steps (jaxlm draws one per time step)"


def _assumed(layer: Layer) -> Iterator[str]:
    inner = layer.config.get("layer") if layer.kind == "TimeDistributed" else None
    settings = inner.get("config", {}) if isinstance(inner, dict) else layer.config
    value = settings.get("activation") if isinstance(settings, dict) else None
    if isinstance(value, dict) and value.get("class_name") == "function":
        yield f"the function {value.get('config')!r} of {layer.config.get('name', '?')} is the Keras function"
    if layer.kind == "CuDNNLSTM":
        yield f"{layer.config.get('name', '?')} (CuDNNLSTM) is read and exported as the equivalent LSTM"


def _short(value: Any) -> str:
    return repr(value.get("class_name", "?") if isinstance(value, dict) else value)[:60]
