"""The model begins as Keras' layers do, at the unigram model where counts are given; dropout as Zaremba's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel


def test_softmax_rows_begin_as_keras_dense_and_the_embedding_wider():
    keras = pytest.importorskip("keras")
    model = LanguageModel(ModelConfig(500, embedding_size=40, hidden_size=60), rngs=nnx.Rngs(0))
    dense = keras.layers.Dense(500)
    dense.build((None, 60))
    kernel = keras.ops.convert_to_numpy(dense.kernel)
    np.testing.assert_allclose(model.weights[...].std(), kernel.std(), rtol=0.03)
    np.testing.assert_allclose(jnp.abs(model.weights[...]).max(), np.abs(kernel).max(), rtol=0.01)
    np.testing.assert_allclose(model.embedding[...].std(), 3**-0.5, rtol=0.03)  # uniform in [-1, 1]
    np.testing.assert_array_equal(model.biases[...], 0.0)


def test_begins_at_the_unigram_model():
    counts = np.arange(5000, 0, -1)
    log_unigram = np.log(counts / counts.sum()).astype(np.float32)
    model = LanguageModel(ModelConfig(5000, embedding_size=8, hidden_size=16), log_unigram, rngs=nnx.Rngs(0))
    logits, _ = model(jnp.arange(12).reshape(2, 6))
    np.testing.assert_allclose(jax.nn.log_softmax(logits) - log_unigram[None, None], 0.0, atol=0.05)
    with pytest.raises(InputError, match="log_unigram"):
        LanguageModel(ModelConfig(5001, 8, 16), log_unigram, rngs=nnx.Rngs(0))


def test_state_carries_over():
    model = LanguageModel(ModelConfig(20, embedding_size=5, hidden_size=6, num_layers=3), rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, 20, (2, 9))
    whole, last = model(ids)
    first, carry = model(ids[:, :4])
    second, carry = model(ids[:, 4:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry, last)


def test_dropout_keeps_the_mean_and_spares_the_recurrence():
    config = ModelConfig(20, embedding_size=400, hidden_size=300, dropout=0.25)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    embedded, carry = model.embedding[np.ones((3, 2), int)], model.initial_carry(3)
    keys = jax.random.split(jax.random.key(0), 3)  # one for each stream
    _, dropped, _ = model.lstm_outputs(embedded, carry, keys)
    np.testing.assert_allclose(jnp.mean(dropped == 0.0), 0.25, atol=0.03)  # the outputs, before the softmax
    silent = jax.tree.map(jnp.zeros_like, embedded)  # with no input only the outputs' dropout is left
    _, kept, kept_carry = model.lstm_outputs(silent, carry, keys)
    plain, plain_carry = model.hidden(silent, carry)
    jax.tree.map(np.testing.assert_array_equal, kept_carry, plain_carry)
    np.testing.assert_allclose(kept[kept != 0], plain[kept != 0] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(plain, model.hidden(silent, carry)[0])
