"""Nearest words by cosine, and the most likely next words."""

import jax
import numpy as np
import pytest
from helpers import make_random_model

from jaxlm.cli import run
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.inference.neighbors import nearest_words, next_words
from jaxlm.runs.directory import load_model

VOCABULARY = Vocabulary(("<eos>", *map(str, range(1, 22)), "<unk>"), None, "whitespace")


@pytest.mark.parametrize("table", ["embedding", "softmax"])
def test_nearest_words_have_the_highest_cosines(table):
    model = make_random_model()
    rows = np.asarray((model.embedding if table == "embedding" else model.weights)[...], np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for word in (3, 20):
        words, cosines = nearest_words(model, VOCABULARY, VOCABULARY.words[word], k=5, table=table)
        expected = rows @ rows[word]
        order = [i for i in np.argsort(-expected) if i not in (word, 22)][:5]
        assert words == [VOCABULARY.words[i] for i in order]
        np.testing.assert_allclose(cosines, expected[order], rtol=1e-5)


def test_a_tied_model_has_one_table():
    model = make_random_model(tied=True, embedding_size=7)
    both = [nearest_words(model, VOCABULARY, "4", k=3, table=table).words for table in ("embedding", "softmax")]
    assert both[0] == both[1]


def test_next_words_have_the_highest_probabilities():
    model = make_random_model()
    words, probabilities = next_words(model, VOCABULARY, "3 1 unheard", k=23)
    expected = np.asarray(jax.nn.softmax(model(np.array([[0, 3, 1, 22]]))[0][0, -1]))  # <eos> before, <unk> at the end
    order = np.argsort(-expected)
    assert words == [VOCABULARY.words[i] for i in order]
    np.testing.assert_allclose(probabilities, expected[order], rtol=1e-5)


def test_a_small_vocabulary_has_fewer_words_than_asked_for():
    model = make_random_model()
    assert sorted(next_words(model, VOCABULARY, "3", k=100).words) == sorted(VOCABULARY.words)
    for word in ("3", "<unk>"):
        expected = sorted({*VOCABULARY.words} - {word, "<unk>"})
        assert sorted(nearest_words(model, VOCABULARY, word, k=100).words) == expected


SHORT = Vocabulary(("a",), None, "whitespace")


@pytest.mark.parametrize("change", [{"k": 0}, {"word": "unheard"}, {"vocabulary": SHORT}, {"table": "other"}])
def test_wrong_arguments_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        nearest_words(make_random_model(), **({"vocabulary": VOCABULARY, "word": "1"} | change))


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"prompt": [3, 1]},
        {"prompt": "", "vocabulary": Vocabulary(tuple(map(str, range(23))), None, "whitespace")},
        {"vocabulary": SHORT},
    ],
)
def test_wrong_arguments_of_next_words_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        next_words(make_random_model(), **({"vocabulary": VOCABULARY, "prompt": "3"} | change))


def test_the_commands_print_tables(run_dir, capsys):
    model, vocabulary, _ = load_model(run_dir)
    assert run(["next-words", str(run_dir), "the whale", "--k", "3"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    words, probabilities = next_words(model, vocabulary, "the whale", k=3)
    assert [word for _, word in lines] == words
    np.testing.assert_allclose([float(number) for number, _ in lines], probabilities, atol=1e-6)
    assert run(["neighbors", str(run_dir), "whale", "sea", "--k", "2"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        [word, table] for word in ("whale", "sea") for table in ("embedding", "embedding", "softmax", "softmax")
    ]
    assert run(["neighbors", str(run_dir), "whale", "zebra"]) == 2
    assert "Not in the vocabulary: zebra. Give words of" in capsys.readouterr().err
    assert run(["neighbors", str(run_dir), "Whale"]) == 2
    assert "Not in the vocabulary: Whale. Write whale." in capsys.readouterr().err
