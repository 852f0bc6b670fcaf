"""Lists of words in the forms that people have."""

import json

import pytest

from jaxlm.data.vocabulary import EOS, UNK, Vocabulary
from jaxlm.data.word_lists import read_vocabulary
from jaxlm.errors import InputError

WORDS = ["<S>", "<UNK>", "the", "wal-fisch", "12"]
FORMS = {
    "words": "".join(f"{word}\n" for word in WORDS),
    "no last line end": "\n".join(WORDS),
    "counts": "".join(f"{word} 9\n" for word in WORDS),
    "tabs": "".join(f"{word}\t9\r\n" for word in WORDS),
    "list.json": json.dumps(WORDS),
    "ids.json": json.dumps({word: WORDS.index(word) for word in reversed(WORDS)}),
}
BAD = [
    ("words", "the\ntwo words\n", "words, line 2: expected a word, or a word and its count"),
    ("words", "the\n\nsea\n", "words, line 2"),
    ("words", "the\nsea\nthe\n", "'the' twice"),
    ("words", "the\t3\nsea\n", "Line 2 has no count"),
    ("words", "the 3\n\nsea 2\n", "words, line 2: expected a word, or a word and its count"),
    (
        "words",
        "\n[UNK]\nthe\n",
        "vocabulary.json of the run that `jaxlm-convert from-keras MODEL RUN --vocabulary /.*words`",
    ),
    ("words.json", '["", "[UNK]", "the"]', "or a list of words without padding"),
    ("words.json", '{"class_name": "Tokenizer", "config": {}}', "words.json lists the words of a Keras model"),
    ("words.json", "[1, 2]", "words.json"),
    ("words.json", "{", "not valid JSON"),
    ("words.json", '{"words": ["the"]}', "words.json"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path, form):
    (tmp_path / form).write_text(FORMS[form])
    assert read_vocabulary(tmp_path / form) == WORDS


def test_the_vocabulary_of_a_model_is_read_from_its_file_or_directory(tmp_path):
    vocabulary = Vocabulary(("the", EOS, UNK), (3, 2, 1), "whitespace")
    vocabulary.save(tmp_path / "vocabulary.json")
    assert read_vocabulary(tmp_path / "vocabulary.json") == read_vocabulary(tmp_path) == vocabulary


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_other_forms_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_vocabulary(tmp_path / name)
