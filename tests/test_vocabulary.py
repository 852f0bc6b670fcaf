"""Text to ids: order by count, reserved words at their rank, bad files named."""

import gzip
import lzma
from itertools import cycle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import InputError
from jaxlm.text import encode_chunks, numbering, read_chunks
from jaxlm.vocabulary import EOS, UNK, Vocabulary, select_words


def build(path: Path, vocab_size: int = 100, split: str = "words") -> tuple[Vocabulary, list[str]]:
    numbers = numbering()
    ids = np.concatenate(list(encode_chunks(read_chunks([path]), split, numbers.__getitem__)))
    vocabulary = select_words(numbers, np.bincount(ids, minlength=len(numbers)), vocab_size, split)
    return vocabulary, [vocabulary.words[i] for i in vocabulary.ids_of(numbers)[ids]]


def test_ids_fall_by_count_and_reserved_words_take_their_rank(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("b a a a\nb c d\ne\n")
    vocabulary, words = build(path, vocab_size=4)
    assert vocabulary.words == (EOS, UNK, "a", "b")  # c, d and e are unknown: 3, as many as lines and a
    assert vocabulary.counts == (3, 3, 3, 2)
    assert words == ["b", "a", "a", "a", EOS, "b", UNK, UNK, EOS, UNK, EOS]
    np.testing.assert_allclose(np.exp(vocabulary.log_unigram), np.array([3, 3, 3, 2]) / 11, rtol=1e-6)


def test_words_and_marks_are_cut_and_line_ends_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Don't stop--Größe 3.5!\r\n\nन्यू <unk>", encoding="utf-8")
    _, words = build(path)
    expected = ["Don", "'", "t", "stop", "-", "-", "Größe", "3", ".", "5", "!", EOS, EOS, "न्यू", UNK, EOS]
    assert words == expected
    _, words = build(path, split="whitespace")
    assert words == ["Don't", "stop--Größe", "3.5!", EOS, EOS, "न्यू", UNK, EOS]


def test_encode_equals_the_token_file_and_decode_goes_back(tmp_path):
    path = tmp_path / "a.txt"
    text = "It was, he said, the sea.\nThe sea (and <unk> it)!\n<eos> end\n"
    path.write_text(text)
    vocabulary, words = build(path)
    ids = vocabulary.encode(text)
    assert [vocabulary.words[i] for i in ids] == words
    assert vocabulary.decode(ids[:16]) == "It was, he said, the sea.\nThe sea (and <unk> it"
    assert vocabulary.encode("unheard").tolist() == [vocabulary.ids[UNK]]
    assert vocabulary.encode("").size == 0


@pytest.mark.parametrize("opener", [open, gzip.open, lzma.open])
def test_compressed_text_is_the_same_text(tmp_path, opener):
    suffix = {open: "", gzip.open: ".gz", lzma.open: ".xz"}[opener]
    path = tmp_path / f"a.txt{suffix}"
    lines = [f"line {n} of the text" for n in range(20_000)]
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("\ufeff" + "\n".join(lines))
    text = "".join(read_chunks([path]))
    assert text == "\n".join(lines) + "\n"  # no byte order mark, and the last line ends


def test_long_lines_are_cut_at_spaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 300_000)
    chunks = list(read_chunks([path]))
    assert max(map(len, chunks)) < 1 << 20
    assert "".join(chunks).split() == ["word"] * 300_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab'- \t\n\r\xa0\x1c\u2028é\u0308न्<unk>")) | st.text()),
    st.sampled_from(["words", "whitespace"]),
)
def test_a_text_is_cut_as_the_tokenizer_does_that_sees_all_of_it(chunks, split):
    chunks = [chunk + end for chunk, end in zip(chunks, cycle(" \n"))]
    vocabulary = Vocabulary(("a", "b", UNK, EOS, "é", "'"), (1,) * 6, split)
    numbers = numbering()
    with mock.patch("jaxlm.vocabulary.MAX_REMEMBERED", 20):  # what is remembered is dropped often
        ids = [*encode_chunks(chunks, split, numbers.__getitem__), np.zeros(0, np.int32)]
    expected = vocabulary.encode("".join(chunks))
    np.testing.assert_array_equal(vocabulary.ids_of(numbers)[np.concatenate(ids)], expected)
    words = [token for token, _ in vocabulary.tokenizer.pre_tokenizer.pre_tokenize_str("".join(chunks))]
    assert [list(numbers)[i] for i in np.concatenate(ids)] == words


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / {"gz": "a.gz", "xz": "a.xz", "plain": "b.gz"}.get(kind, "a.txt")
    data = b"some text\n" * 1000
    if kind == "gz":
        path.write_bytes(gzip.compress(data)[:-20])
    elif kind == "xz":
        path.write_bytes(lzma.compress(data)[:-20])
    elif kind != "missing":
        path.write_bytes(
            {"empty": b"", "latin1": b"caf\xe9 au lait\n", "plain": data, "endless": b"x" * 3 * 10**6}[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("latin1", "is not UTF-8: byte 0xe9"),
        ("gz", "cannot be read"),
        ("xz", "cannot be read"),
        ("plain", "cannot be read"),
        ("endless", "without a space"),
    ],
)
def test_bad_files_are_named(tmp_path, kind, message):
    path = damaged(tmp_path, kind)
    with pytest.raises(InputError, match=message) as error:
        list(read_chunks([path]))
    assert str(path) in str(error.value)


def test_saves_and_loads_and_refuses_what_is_no_vocabulary(tmp_path):
    vocabulary = Vocabulary(("the", EOS, "sea", UNK), (9, 4, 4, 0), "words")
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    good = path.read_text()
    changes = [
        ('"sea"', '"the"'),
        (UNK, "unk"),
        ('"counts"', '"count"'),
        ("9", "1"),
        ("{", ""),
        ('"split": "words"', '"split": "x"'),
    ]
    for old, new in changes:
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(InputError):
            Vocabulary.load(path)
