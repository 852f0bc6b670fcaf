"""Generated text follows the model's distribution."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxlm.cli import run
from jaxlm.config import ModelConfig
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.inference.generation import draw_texts, generate
from jaxlm.model.language_model import LanguageModel

# Ids are 0 to 8; 2 is the end of a line, and 4 is never drawn.
VOCABULARY = Vocabulary(("a", "b", "<eos>", "c", "<unk>", "d", "e", "f", "g"), None, "whitespace")
WITHOUT_EOS = dataclasses.replace(VOCABULARY, words=("a", "b", "h", *VOCABULARY.words[3:]))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    model = LanguageModel(ModelConfig(9, embedding_size=4, hidden_size=6), rngs=nnx.Rngs(0))
    model.weights[...] *= 5.0
    return model


def draw(model: LanguageModel, prompt: str, num_words: int, num_texts: int, **options: Any) -> np.ndarray:
    """Returns `[num_texts, num_words]` ids that follow a prompt."""
    keys = jax.random.split(jax.random.key(0), num_texts)
    *_, texts = draw_texts(model, VOCABULARY, prompt, num_words, keys=keys, **options)
    return np.array(texts)[:, -num_words:]


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "ids"),
    [
        (VOCABULARY, "b d", [2, 1, 5]),  # <eos> comes first
        (VOCABULARY, "", [2]),
        (VOCABULARY, "b h", [2, 1, 4]),  # unknown
        (VOCABULARY, "b\nd", [2, 1, 2, 5]),
        (WITHOUT_EOS, "b d", [1, 5]),
        (WITHOUT_EOS, "b\nx", [1, 4]),
        (dataclasses.replace(WITHOUT_EOS, words=(*"abhcidefg",)), "b x d", [1, 5]),  # unknown words are left out
    ],
)
def test_greedy_words_are_those_of_full_passes(model, vocabulary, prompt, ids):
    words = list(ids)
    for _ in range(6):
        padded = np.array([words + [0] * (12 - len(words))])  # of one length, so that one program reads all
        logits = np.array(model(padded)[0][0])[len(words) - 1]
        logits[vocabulary.placeholders] = -np.inf
        words.append(int(logits.argmax()))
    expected = vocabulary.decode(words[vocabulary.eos is not None :])
    assert generate(model, vocabulary, prompt, 6, temperature=0.0) == expected.rstrip(" \n")


def test_draws_follow_temperature_top_k_and_leave_placeholders_out(model):
    logits = np.asarray(model(np.array([[2, 3]]))[0][0, -1]) / 0.7
    logits[4] = -np.inf
    logits[np.argsort(logits)[:-5]] = -np.inf
    expected = np.exp(logits.astype(np.float64) - logits.max())
    observed = np.bincount(draw(model, "c", 1, 600, temperature=0.7, top_k=5)[:, 0], minlength=9)
    assert set(np.flatnonzero(observed)) <= set(np.flatnonzero(expected))
    likely = expected > 0
    assert stats.chisquare(observed[likely], 600 * expected[likely] / expected.sum()).pvalue > 1e-3
    assert set(draw(model, "c", 1, 600, temperature=3e38).ravel()) == set(range(9)) - {4}


def test_draws_follow_top_p(model):
    logits = np.asarray(model(np.array([[2, 3]]))[0][0, -1], np.float64)
    logits[4] = -np.inf
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.6)) + 1]
    observed = np.bincount(draw(model, "c", 1, 600, top_p=0.6)[:, 0], minlength=9)
    assert set(np.flatnonzero(observed)) == set(kept)
    expected = 600 * probabilities[kept] / probabilities[kept].sum()
    assert stats.chisquare(observed[kept], expected).pvalue > 1e-3


def test_texts_drawn_side_by_side_are_those_drawn_alone(model):
    keys = jax.random.split(jax.random.key(0), 3)
    for until_eos in (False, True):
        options = {"top_p": 0.9, "until_eos": until_eos}
        *_, together = draw_texts(model, VOCABULARY, "c f", 15, keys=keys, **options)
        alone = [generate(model, VOCABULARY, "c f", 15, key=key, **options) for key in keys]
        assert [VOCABULARY.decode(ids).rstrip(" \n") for ids in together] == alone


def test_a_text_ends_at_the_end_of_a_line(model):
    seeds = [jax.random.key(n) for n in range(8)]
    texts = [generate(model, VOCABULARY, "c", 60, key=key) for key in seeds]
    lines = [generate(model, VOCABULARY, "c", 60, until_eos=True, key=key) for key in seeds]
    assert lines == [text.partition("\n")[0] for text in texts]
    assert lines != texts


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
    first = generate(model, VOCABULARY, "c d", 20, key=jax.random.key(1))
    assert first == generate(model, VOCABULARY, "c d", 20, key=jax.random.key(1))
    assert first != generate(model, VOCABULARY, "c d", 20, key=jax.random.key(2))
    assert generate(model, VOCABULARY, "c d", 0, key=jax.random.key(1)) == "c d"


def test_a_temperature_of_0_needs_no_key_and_top_k_may_exceed_the_vocabulary(model):
    drawn = generate(model, VOCABULARY, "c d", 9, temperature=0, key=jax.random.key(1))
    assert generate(model, VOCABULARY, "c d", 9, temperature=0) == drawn
    all_words, more = (generate(model, VOCABULARY, "c d", 20, top_k=k, key=jax.random.key(1)) for k in (9, 10))
    assert all_words == more


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1.0},
        {"num_words": 3.5},
        {"top_k": 2.0},
        {"top_k": -1},
        {"key": None},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"num_words": -1},
        {"prompt": [3, 1, 4]},
        {"prompt": "", "vocabulary": WITHOUT_EOS},
        {"until_eos": True, "vocabulary": WITHOUT_EOS},
        {"vocabulary": Vocabulary(("a",), None, "whitespace")},
    ],
)
def test_arguments_out_of_range_raise(model, change):
    arguments = {"vocabulary": VOCABULARY, "prompt": "a", "num_words": 1, "key": jax.random.key(0)} | change
    with pytest.raises(InputError, match=next(iter(change))):
        generate(model, **arguments)
