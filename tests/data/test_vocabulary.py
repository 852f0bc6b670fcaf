"""Text to ids: words sorted by count, reserved words at their rank."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import rewrite_json

from jaxlm.data.text_files import read_chunks
from jaxlm.data.tokenization import KerasTokenizer, PieceEncoder, auto_ids
from jaxlm.data.vocabulary import EOS, UNK, UNUSED, Vocabulary, select_words
from jaxlm.errors import InputError
from jaxlm.files import write_json


def build(path: Path, vocab_size: int = 100, tokenization: str = "words") -> tuple[Vocabulary, list[str]]:
    """Returns the vocabulary of a text, and its words."""
    raw_ids = auto_ids()
    encoder = PieceEncoder(tokenization, raw_ids.__getitem__)
    ids = np.concatenate([encoder.encode(chunk) for chunk in read_chunks([path])])
    vocabulary = select_words(raw_ids, np.bincount(ids, minlength=len(raw_ids)), vocab_size, tokenization)
    return vocabulary, [vocabulary.words[i] for i in vocabulary.ids_of(raw_ids)[ids]]


def test_ids_are_sorted_by_count_and_reserved_words_take_their_rank(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("b a a a\nb c d\ne\n")
    vocabulary, words = build(path, vocab_size=4)
    assert vocabulary.words == (EOS, UNK, "a", "b")  # c, d and e are unknown: 3, as many as lines and a
    assert vocabulary.counts == (3, 3, 3, 2)
    assert words == ["b", "a", "a", "a", EOS, "b", UNK, UNK, EOS, UNK, EOS]
    np.testing.assert_allclose(np.exp(vocabulary.log_unigram), np.array([3, 3, 3, 2]) / 11, rtol=1e-6)


def test_text_is_cut_into_words_and_punctuation_marks_and_line_ends_are_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Don't stop--Größe 3.5!\r\n\nन्यू <unk>", encoding="utf-8")
    _, words = build(path)
    expected = ["Don", "'", "t", "stop", "-", "-", "Größe", "3", ".", "5", "!", EOS, EOS, "न्यू", UNK, EOS]
    assert words == expected
    _, words = build(path, tokenization="whitespace")
    assert words == ["Don't", "stop--Größe", "3.5!", EOS, EOS, "न्यू", UNK, EOS]


JOINED = ["می\u200cخواهم", "क्\u200dष", "a\u0301", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪"]
JOINED += ["❤\ufe0f", "1\ufe0f\u20e3", "🏳\ufe0f\u200d🌈"]


@pytest.mark.parametrize("word", JOINED)
def test_joiners_stay_within_a_word_in_a_text_and_in_a_prompt(tmp_path, word):
    path = tmp_path / "a.txt"
    path.write_text(f"{word}, {word} the\n", encoding="utf-8")
    vocabulary, words = build(path)
    assert words == [word, ",", word, "the", EOS]
    assert vocabulary.words[vocabulary.encode(f"{word}!")[0]] == word


def test_encode_gives_the_ids_of_the_token_file_and_decode_inverts_it(tmp_path):
    path = tmp_path / "a.txt"
    text = "It was, he said, the sea.\nThe sea (and <unk> it)!\n<eos> end\n"
    path.write_text(text)
    vocabulary, words = build(path)
    ids = vocabulary.encode(text)
    assert [vocabulary.words[i] for i in ids] == words
    assert vocabulary.decode(ids[:16]) == "It was, he said, the sea.\nThe sea (and <unk> it"
    end = vocabulary.ids[EOS]
    assert vocabulary.decode([end, *ids[:1], end, end]) == "\nIt\n\n"
    assert vocabulary.encode("unheard").tolist() == [vocabulary.ids[UNK]]
    assert vocabulary.encode("").size == 0


def test_saves_and_loads_and_refuses_anything_else(tmp_path):
    vocabulary = Vocabulary(("the", EOS, "sea", UNK), (9, 4, 4, 0), "words")
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert vocabulary.checksum != replace(vocabulary, tokenization="whitespace").checksum
    good = path.read_bytes()
    changes = [
        ('"sea"', '"the"'),
        ('"counts"', '"count"'),
        ('"format": 1', '"format": 2'),
        ("9", "1"),
        ("9", '"9"'),
        ('"tokenization": "words"', '"tokenization": "x"'),
    ]
    for old, new in changes:
        path.write_bytes(good)
        rewrite_json(path, old, new)
        with pytest.raises(InputError, match="vocabulary.json"):
            Vocabulary.load(path)
    path.write_bytes(good.replace(b"9", b"8"))
    with pytest.raises(InputError, match="checksum is wrong"):
        Vocabulary.load(path)


@pytest.mark.parametrize("counts", [[9, 4, 0], np.array([9, 4, 0])])
def test_lists_and_arrays_equal_tuples(tmp_path, counts):
    words = np.array(["the", EOS, UNK]).tolist()
    vocabulary, expected = (
        Vocabulary(words, counts, "words", ["<s>"]),
        Vocabulary(("the", EOS, UNK), (9, 4, 0), "words"),
    )
    expected = replace(expected, dropped=("<s>",))
    assert vocabulary == expected and vocabulary.checksum == expected.checksum and hash(vocabulary) == hash(expected)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": "abc"}, "`words`: expected a list of strings"),
        ({"words": ["the", b"sea", "<s>"]}, "`words`: expected a list of strings"),
        ({"words": 3}, "`words`: expected a list of strings"),
        ({"counts": [9.5, 4, 0]}, "`counts`: expected integers"),
        ({"counts": np.ones(3)}, "`counts`: expected integers"),
        ({"counts": "940"}, "`counts`: expected integers"),
        ({"dropped": "<s>"}, "`dropped`: expected a list of strings"),
    ],
)
def test_words_and_counts_of_other_types_raise(change, message):
    with pytest.raises(InputError, match=message):
        Vocabulary(**{"words": ["the", EOS, UNK], "counts": None, "tokenization": "words"} | change)


@pytest.mark.parametrize("tokenization", ["text_vectorization", KerasTokenizer(), KerasTokenizer(False, "#")])
def test_a_vocabulary_may_lack_counts_unknown_words_and_line_ends(tmp_path, tokenization):
    vocabulary = Vocabulary(("", "the", "sea", UNUSED.format(3)), None, tokenization)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary and loaded.checksum == vocabulary.checksum
    assert (loaded.unk, loaded.eos, loaded.placeholders) == (None, None, [0, 3])
    assert loaded.encode("the open sea\n  the\n").tolist() == [1, 2, 1]
    with pytest.raises(InputError, match="counts of this vocabulary are not known"):
        _ = loaded.log_unigram


def test_counts_of_0_in_older_files_are_unknown_and_the_checksum_is_that_of_older_runs(tmp_path):
    path = tmp_path / "vocabulary.json"
    old = {"tokenization": "words", "words": ["the", EOS, UNK], "counts": [0, 0, 0]}
    write_json(path, old, 1)
    assert Vocabulary.load(path).counts is None
    assert Vocabulary.load(path).checksum == Vocabulary(("the", EOS, UNK), (0, 0, 0), "words").checksum
