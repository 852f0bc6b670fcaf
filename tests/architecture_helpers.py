"""Architectures that people publish, as models of both versions of Keras, and their outputs."""

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest

import jaxlm
from convert.keras_models.live_layers import as_array, chain, weight_variables, zero_states

V = 23


def lstm(k, size=7, **settings):
    return k.layers.LSTM(size, return_sequences=True, **settings)


def softmax(k, **settings):
    return k.layers.Dense(V, activation="softmax", **settings)


def published_tutorial(k):
    hidden = k.layers.Dense(9, activation="relu")
    return [k.layers.Embedding(V, 5), lstm(k), k.layers.LSTM(6), hidden, softmax(k)]


def dense_layers(k):
    hidden = [k.layers.Dense(9, activation="tanh", use_bias=False), k.layers.Dense(4)]
    return [k.layers.Embedding(V, 5), lstm(k), *hidden, softmax(k)]


def sizes_and_biases(k):
    softmax_without = softmax(k, use_bias=False)
    return [k.layers.Embedding(V, 5), lstm(k, 9, use_bias=False), lstm(k, 6, name="first"), softmax_without]


def dropouts(k):
    middle = [k.layers.Dropout(0.5), lstm(k, dropout=0.25, recurrent_dropout=0.1), k.layers.GaussianNoise(0.3)]
    return [k.layers.Embedding(V, 5), *middle, lstm(k), k.layers.SpatialDropout1D(0.2), softmax(k)]


def wrapped(k):
    rnn = k.layers.RNN(k.layers.LSTMCell(6), return_sequences=True)
    hidden = k.layers.TimeDistributed(k.layers.Dense(4, activation="relu"))
    inner = k.Sequential([k.layers.Dense(8), k.layers.Activation("tanh"), k.layers.Dropout(0.1)])
    return [k.layers.Embedding(V, 5), rnn, hidden, inner, k.layers.Dense(V), k.layers.Activation("softmax")]


def function(k):
    import tensorflow as tf

    return [k.layers.Embedding(V, 5), lstm(k), k.layers.Dense(V, activation=tf.nn.softmax)]


def stateful(k):
    return [k.layers.Embedding(V, 5), lstm(k, stateful=True), lstm(k, 6, stateful=True), k.layers.Dense(V)]


def mixed(policy: str) -> Callable[[Any], list]:
    def make(k):
        inner = [k.layers.Embedding(V, 5, dtype=policy), lstm(k, dtype=policy), k.layers.Dense(V, dtype=policy)]
        return [*inner, k.layers.Activation("softmax", dtype="float32")]

    return make


ARCHITECTURES = {
    "published tutorial": published_tutorial,
    "dense layers": dense_layers,
    "sizes and biases": sizes_and_biases,
    "dropouts": dropouts,
    "wrapped": wrapped,
    "function": function,
    "stateful": stateful,
    "mixed_float16": mixed("mixed_float16"),
    "mixed_bfloat16": mixed("mixed_bfloat16"),
    "float64": mixed("float64"),
}
TOLERANCES = {"mixed_float16": 0.01, "mixed_bfloat16": 0.1}
FIXED = {"stateful": (3, 4), "wrapped": (2, 6)}  # Keras 3 exports TimeDistributed wrongly if the length is unknown


def make_model(name: str, k: Any, *, functional: bool = False) -> Any:
    """Makes an architecture with random weights and biases."""
    layers, (batch_size, length) = ARCHITECTURES[name](k), FIXED.get(name, (None, None))
    ids = k.Input((length,), batch_size=batch_size, dtype="int32")
    if functional:
        outputs = ids
        for layer in layers:
            outputs = layer(outputs)
        model = k.Model(ids, outputs)
    else:
        model = k.Sequential(
            [ids, *layers] if k is keras else [k.layers.InputLayer(ids.shape[1:], batch_size), *layers]
        )
    rng = np.random.default_rng(0)
    for layer in chain(model):
        for variable in weight_variables(layer):
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def keras_module(version: int) -> Any:
    return keras if version == 3 else pytest.importorskip("tf_keras", reason="Keras 2 is not installed")


def outputs_of(model: Any, ids: np.ndarray) -> np.ndarray:
    """Returns Keras' own log-probabilities from zero states."""
    with zero_states(chain(model)):
        outputs = as_array(model(ids)).astype(np.float64)
    if outputs.min() < 0:
        return np.asarray(jax.nn.log_softmax(outputs))
    return np.log(outputs)


def assert_equal_function(language_model: jaxlm.LanguageModel, model: Any, name: str) -> None:
    batch_size, length = FIXED.get(name, (2, 6))
    ids = np.random.default_rng(1).integers(0, V, (batch_size, length)).astype(np.int32)
    ours, theirs = np.asarray(jax.nn.log_softmax(language_model(ids)[0])), outputs_of(model, ids)
    tolerance = TOLERANCES.get(name, 1e-5)
    np.testing.assert_allclose(ours[:, -1] if theirs.ndim == 2 else ours, theirs, atol=tolerance)
