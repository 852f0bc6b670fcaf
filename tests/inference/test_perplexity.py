"""Exact evaluation against full logits, however it is cut into batches."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.inference.perplexity import evaluate
from jaxlm.model.language_model import LanguageModel


def make_model() -> LanguageModel:
    model = LanguageModel(ModelConfig(37, embedding_size=5, hidden_size=8, num_layers=2), rngs=nnx.Rngs(0))
    model.weights[...] *= 20.0
    model.biases[...] = jax.random.normal(jax.random.key(1), (37,))
    return model


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(1, 7), (1, 100), (500, 3)])
def test_the_loss_is_that_of_full_logits(batch_size, sequence_length):
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 37, 91).astype(np.int32)
    if batch_size == 1:
        log_probabilities = jax.nn.log_softmax(model(tokens[None, :-1])[0])[0]
        losses = -log_probabilities[np.arange(90), tokens[1:]]
    else:  # more streams than words: each word from the zero state
        log_probabilities = jax.nn.log_softmax(model(tokens[:-1, None])[0])[:, 0]
        losses = -log_probabilities[np.arange(90), tokens[1:]]
    result = evaluate(model, tokens, batch_size=batch_size, sequence_length=sequence_length)
    assert result.num_tokens == 90
    np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.perplexity, np.exp(losses.mean()), rtol=1e-5)


def test_a_partial_evaluation_has_as_many_words_as_asked():
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 37, 1001).astype(np.int32)
    assert evaluate(model, tokens, batch_size=4, max_tokens=100).num_tokens == 100


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([3], {}, "Invalid `tokens`: expected at least two ids"),
        ([[3, 4]], {}, "expected integer ids of shape"),
        ([3, 37], {}, "expected ids from 0 to 36"),
        ([3, 10**6], {}, "Received: 3 to 1000000"),
        ([3, -1], {}, "expected ids from 0 to 36"),
        ([3, 4], {"batch_size": 0}, "Invalid `batch_size`: expected at least 1"),
        ([3, 4], {"sequence_length": 0}, "sequence_length"),
        ([3, 4], {"max_tokens": -1}, "max_tokens"),
    ],
)
def test_wrong_arguments_raise(tokens, change, message):
    with pytest.raises(InputError, match=message):
        evaluate(make_model(), tokens, **change)


@pytest.mark.parametrize("word", [37, -1, 10**6])
def test_an_invalid_id_on_the_device_makes_the_loss_nan(word):
    assert np.isnan(evaluate(make_model(), jax.numpy.array([3, word, 4, 5])).loss)
