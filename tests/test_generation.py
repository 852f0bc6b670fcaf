"""Generated text follows the model's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.generation import generate
from jaxlm.model import LanguageModel


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    model = LanguageModel(ModelConfig(9, embedding_size=4, hidden_size=6), rngs=nnx.Rngs(0))
    model.weights[...] *= 5.0
    return model


def test_greedy_words_are_those_of_full_passes(model):
    prompt = np.array([1, 5, 2], np.int32)
    words = prompt.tolist()
    for _ in range(6):
        words.append(int(model(jnp.array([words]))[0][0, -1].argmax()))
    assert generate(model, prompt, 6, temperature=0.0, key=jax.random.key(0)) == words[3:]


def test_draws_follow_temperature_top_k_and_avoid(model):
    prompt = np.array([3], np.int32)
    logits = np.asarray(model(prompt[None])[0][0, -1]) / 0.7
    logits[4] = -np.inf
    logits[np.argsort(logits)[:-5]] = -np.inf
    expected = np.exp(logits.astype(np.float64) - logits.max())
    draws = [
        generate(model, prompt, 1, temperature=0.7, top_k=5, avoid=(4,), key=jax.random.key(n))[0] for n in range(600)
    ]
    observed = np.bincount(draws, minlength=9)
    assert set(np.flatnonzero(observed)) <= set(np.flatnonzero(expected))
    likely = expected > 0
    assert stats.chisquare(observed[likely], 600 * expected[likely] / expected.sum()).pvalue > 1e-3


def test_same_key_same_words_and_none_on_request(model):
    prompt = np.array([3, 4], np.int32)
    first = generate(model, prompt, 20, key=jax.random.key(1))
    assert first == generate(model, prompt, 20, key=jax.random.key(1))
    assert first != generate(model, prompt, 20, key=jax.random.key(2))
    assert generate(model, prompt, 0, key=jax.random.key(1)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1.0},
        {"top_k": 10},
        {"num_words": -1},
        {"prompt": []},
        {"prompt": [[1]]},
        {"prompt": [9]},
        {"prompt": [-1]},
        {"avoid": [9]},
    ],
)
def test_arguments_out_of_range_raise(model, change):
    arguments = {"prompt": [0], "num_words": 1, "key": jax.random.key(0)} | change
    with pytest.raises(InputError, match=next(iter(change))):
        generate(model, **arguments)
