"""Generated text follows the model's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxlm.cli import run
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.inference.generation import draw_words, generate
from jaxlm.model.language_model import LanguageModel


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


def test_draws_follow_top_p(model):
    logits = np.asarray(model(np.array([[3]]))[0][0, -1], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.6)) + 1]
    (words,) = draw_words(model, [3], 1, top_p=0.6, keys=jax.random.split(jax.random.key(0), 600))
    observed = np.bincount(words, minlength=9)
    assert set(np.flatnonzero(observed)) == set(kept)
    expected = 600 * probabilities[kept] / probabilities[kept].sum()
    assert stats.chisquare(observed[kept], expected).pvalue > 1e-3


def test_texts_drawn_side_by_side_are_those_drawn_alone(model):
    keys = [jax.random.key(n) for n in range(3)]
    together = np.stack(list(draw_words(model, [3, 4], 15, top_p=0.9, keys=jnp.stack(keys))))
    for n, key in enumerate(keys):
        assert together[:, n].tolist() == generate(model, [3, 4], 15, top_p=0.9, key=key)


def test_a_text_ends_at_the_stop_word(model):
    words = generate(model, [3], 50, key=jax.random.key(0))
    stop = words[10]
    assert generate(model, [3], 50, stop=stop, key=jax.random.key(0)) == words[: words.index(stop) + 1]


def test_the_command_prints_several_texts(run_dir, capsys):
    command = ["generate", str(run_dir), "--prompt", "the whale", "--num-words", "30"]
    alone = []
    for seed in (5, 6):
        assert run([*command, "--seed", str(seed)]) == 0
        alone.append(capsys.readouterr().out)
    assert run([*command, "--seed", "5", "--num-samples", "2"]) == 0
    assert capsys.readouterr().out == "\n".join(alone)
    assert run([*command, "--seed", "5", "--until-eos"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and alone[0].startswith(line.rstrip())


def test_same_key_same_words_and_none_on_request(model):
    prompt = np.array([3, 4], np.int32)
    first = generate(model, prompt, 20, key=jax.random.key(1))
    assert first == generate(model, prompt, 20, key=jax.random.key(1))
    assert first != generate(model, prompt, 20, key=jax.random.key(2))
    assert generate(model, prompt, 0, key=jax.random.key(1)) == []


def test_a_temperature_of_0_needs_no_key_and_top_k_may_exceed_the_vocabulary(model):
    drawn = generate(model, [3, 4], 9, temperature=0, key=jax.random.key(1))
    assert generate(model, [3, 4], 9, temperature=0) == drawn
    all_words, more = (generate(model, [3, 4], 20, top_k=k, key=jax.random.key(1)) for k in (9, 10))
    assert all_words == more


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"key": None},
        {"top_p": 0.0},
        {"top_p": 1.5},
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
