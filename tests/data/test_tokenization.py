"""Text files to tokens: compressed or not, in chunks or whole; bad files are named."""

import gzip
import lzma
from itertools import cycle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.tokenization import KerasTokenizer, PieceEncoder, auto_ids, read_chunks, tokenizer
from jaxlm.data.vocabulary import EOS, UNK, Vocabulary
from jaxlm.errors import InputError


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
    st.lists(
        st.text(st.sampled_from("abA'- \t\n\r\xa0\x1c\u2028é\u0308न्\u200c\u200d👩👍🏽🇩🇪❤\ufe0f<unk>")) | st.text()
    ),
    st.sampled_from(["words", "whitespace", "text_vectorization", KerasTokenizer(), KerasTokenizer(False, "ab")]),
)
def test_pieces_are_encoded_as_by_a_tokenizer_that_sees_the_whole_text(chunks, tokenization):
    chunks = [chunk + end for chunk, end in zip(chunks, cycle(" \n"))]
    vocabulary = Vocabulary(("a", "b", UNK, EOS, "é", "'"), (1,) * 6, tokenization)
    raw_ids = auto_ids()
    encoder = PieceEncoder(tokenization, raw_ids.__getitem__)
    with mock.patch("jaxlm.data.tokenization.CACHED_CHARS", 20):  # the cache is often cleared
        ids = np.concatenate([*(encoder.encode(chunk) for chunk in chunks), np.zeros(0, np.int32)])
    expected = vocabulary.encode("".join(chunks))
    new_ids = vocabulary.ids_of(raw_ids)[ids]
    np.testing.assert_array_equal(new_ids[new_ids >= 0], expected)
    assert [list(raw_ids)[i] for i in ids] == tokenizer(tokenization)("".join(chunks))


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
