"""Vocabularies of Keras models: the files that people have of them, and ids that are those of Keras."""

import json

import pytest

from convert.keras_vocabulary import read_vocabulary
from jaxlm.errors import InputError


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
    vocabulary, keras_ids = read_vocabulary(tmp_path / name, unk="[UNK]", eos=".", tokenization="whitespace")
    assert vocabulary.words == ("<unk>", "the", "<eos>") and keras_ids is None
    assert vocabulary.counts == ((9, 8, 2) if name == "counts.txt" else None)
    assert vocabulary.tokenization == "whitespace"


@pytest.mark.parametrize("key", ["tokenization", "split"])
def test_a_file_that_says_how_text_is_cut_decides(tmp_path, key):
    (tmp_path / "words.json").write_text(json.dumps({"words": ["<unk>", "<eos>"], key: "whitespace"}))
    vocabulary, _ = read_vocabulary(tmp_path / "words.json", tokenization="words")
    assert vocabulary.tokenization == "whitespace"


@pytest.mark.parametrize("value", [{}, {"words": "the"}, {"words": [1, 2]}, {"words": ["<unk>"], "counts": ["1"]}])
def test_json_without_words_is_refused(tmp_path, value):
    (tmp_path / "words.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="is not a vocabulary"):
        read_vocabulary(tmp_path / "words.json")
