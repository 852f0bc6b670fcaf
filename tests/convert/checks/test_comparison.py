"""The comparison of two models asks no more than the type of the weights gives."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import convert
from convert.checks.comparison import compare, precomputed
from convert.checks.predictor import Predictions, Predictor
from jaxlm.errors import InputError

V = 23


def test_probabilities_that_float16_does_not_have_are_not_compared():
    policy = {"dtype": "mixed_float16"}
    head = layers.Dense(V, activation="softmax", **policy)
    model = keras.Sequential([layers.Embedding(V, 5, **policy), layers.LSTM(7, return_sequences=True, **policy), head])
    model.build((None, None))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, array.shape).astype("float32") for array in model.get_weights()])
    kernel, bias = head.get_weights()
    bias[::2] = -18.0  # about 1e-8, which float16 rounds to 0 or to 6e-8
    head.set_weights([kernel, bias])
    assert convert.from_keras(model).config.vocab_size == V
    bias[1] = np.nan
    head.set_weights([kernel, bias])
    with pytest.raises(InputError, match="NaN or infinite values"):
        convert.from_keras(model)


def test_a_gpu_does_not_round_the_products_of_models_in_jax():
    programs, x = [], jnp.ones((2, 2))

    def predict(ids):
        programs.append(jax.jit(jnp.matmul).trace(x, x).lower(lowering_platforms=("cuda",)).as_text())
        return Predictions(np.zeros((*ids.shape, V), np.float32), {})

    assert compare(precomputed(Predictor("one", V, predict)), Predictor("another", V, predict)).within_tolerance
    assert len(programs) == 2 and all("precision = [HIGHEST, HIGHEST]" in program for program in programs)
