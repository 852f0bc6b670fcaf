"""Exact evaluation against full logits; the way it is cut into batches does not matter."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.evaluation import evaluate
from jaxlm.model import LanguageModel


def make_model() -> LanguageModel:
    model = LanguageModel(ModelConfig(37, embedding_size=5, hidden_size=8, num_layers=2), rngs=nnx.Rngs(0))
    model.weights[...] *= 20.0
    model.biases[...] = jax.random.normal(jax.random.key(1), (37,))
    return model


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(1, 7), (1, 100), (500, 3)])
def test_is_the_loss_of_full_logits(batch_size, sequence_length):
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


def test_a_part_is_a_part():
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 37, 1001).astype(np.int32)
    assert evaluate(model, tokens, batch_size=4, max_tokens=100).num_tokens == 100
