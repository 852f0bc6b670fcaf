"""Vocabularies of Keras models, and damaged files of an imported run."""

import json

import numpy as np
import pytest

from convert import frequency_order, runs
from convert.keras_ids import KerasIds
from jaxlm.errors import InputError
from jaxlm.vocabulary import Vocabulary


def test_counts_are_sorted_stably():
    assert frequency_order([9, 9, 3, 0]) is None
    assert frequency_order([3, 9, 3, 9]).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("words.txt", "[UNK]\nthe\n.\n"),
        ("words.json", json.dumps({"words": ["[UNK]", "the", "."]})),
        ("counts.txt", "[UNK]\t9\nthe\t8\n.\t2\n"),
    ],
)
def test_words_in_the_order_of_their_ids_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    vocabulary, keras_ids = runs.read_vocabulary(tmp_path / name, unk="[UNK]", eos=".", tokenization="whitespace")
    assert vocabulary.words == ("<unk>", "the", "<eos>") and keras_ids is None
    assert vocabulary.counts == ((9, 8, 2) if name == "counts.txt" else (0, 0, 0))
    assert vocabulary.tokenization == "whitespace"


@pytest.mark.parametrize("key", ["tokenization", "split"])
def test_a_file_that_says_how_text_is_cut_decides(tmp_path, key):
    (tmp_path / "words.json").write_text(json.dumps({"words": ["<unk>", "<eos>"], key: "whitespace"}))
    vocabulary, _ = runs.read_vocabulary(tmp_path / "words.json", tokenization="words")
    assert vocabulary.tokenization == "whitespace"


@pytest.mark.parametrize("value", [{}, {"words": "the"}, {"words": [1, 2]}, {"words": ["<unk>"], "counts": ["1"]}])
def test_json_without_words_is_refused(tmp_path, value):
    (tmp_path / "words.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="is not a vocabulary"):
        runs.read_vocabulary(tmp_path / "words.json")


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_damaged_keras_ids_are_refused(random_model, tmp_path, ids):
    vocabulary = Vocabulary(("<unk>", "<eos>", "the"), (3, 2, 1), "words")
    run = tmp_path / "run"
    runs.write(run, random_model(1, vocab_size=3), vocabulary, KerasIds(np.array([2, 0, 1])))
    assert runs.load(run).words == ("<eos>", "the", "<unk>")
    KerasIds(np.array(ids)).save(run)
    with pytest.raises(InputError, match="keras_ids.npy is damaged"):
        runs.load(run)
