"""One reader for files, pipes and the standard input, compressed or not: the same lines from each."""

import bz2
import gzip
import io
import logging
import lzma
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import text_compression, text_files
from jaxlm.data.text_files import list_texts, read_chunks, read_lines, read_text
from jaxlm.errors import InputError

COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
LINES = [f"line {n} of the text" for n in range(20_000)]


@contextmanager
def pipe_of(data: bytes, size: int) -> Iterator[str]:
    """Yields the name of a pipe that gives some bytes, a few at a time."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb", buffering=0) as file:
            try:
                for start in range(0, len(data), size):
                    file.write(data[start : start + size])
            except BrokenPipeError:  # the reader has seen enough
                pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("end", ["", " ", "\n", " \n"])
def test_a_text_is_the_same_from_every_source(tmp_path, monkeypatch, suffix, end):
    data = COMPRESSORS[suffix](b"\xef\xbb\xbf" + ("\r\n".join(LINES) + end).encode())
    path = tmp_path / f"text{suffix}"
    path.write_bytes(data)
    expected = [*LINES[:-1], LINES[-1] + end.removesuffix("\n")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pipe_of(data, 5000) as pipe:
        for source in (path, "-", pipe):
            assert list(read_lines(source)) == expected, source
    assert "".join(read_chunks([path, path])) == 2 * ("\n".join(expected) + "\n")


def test_zstd_is_read_by_the_package_and_named_without_it(tmp_path, monkeypatch):
    path = tmp_path / "text.zst"
    path.write_bytes(b"".join(zstandard.compress(f"{line}\n".encode()) for line in LINES))  # as `cat *.zst` writes it
    assert list(read_lines(path)) == LINES
    monkeypatch.setattr(text_compression, "_zstd", lambda: None)
    with pytest.raises(InputError, match="is compressed with zstd.*zstd -dc"):
        list(read_lines(path))


def test_the_first_bytes_count_and_not_the_name(tmp_path, caplog):
    for name, data in (("plain.gz", b"the sea\n"), ("text.xz", gzip.compress(b"the sea\n", mtime=0))):
        (tmp_path / name).write_bytes(data)
        assert read_text(tmp_path / name) == "the sea\n"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "text.xz is compressed with gzip" in caplog.text


def lines_or_error(source: str | Path) -> list[str] | str:
    try:
        return list(read_lines(source))
    except InputError as error:
        return type(error).__name__


TEXT = st.text(st.sampled_from("ab é鯨 \t\r\n\x85\u2028\ufeff")) | st.text()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")), st.integers(1, 9))
def test_any_bytes_cut_anywhere_are_the_same_lines_or_an_error(tmp_path_factory, data, size):
    path = tmp_path_factory.mktemp("fuzz") / "text"
    path.write_bytes(data)
    with mock.patch.object(text_files, "CHUNK_BYTES", size):
        found = lines_or_error(path)
        with pipe_of(data, size) as pipe:
            assert lines_or_error(pipe) == found
        zipped = path.with_suffix(".gz")
        zipped.write_bytes(gzip.compress(data[: len(data) // 2], mtime=0) + gzip.compress(data[len(data) // 2 :]))
        assert lines_or_error(zipped) == found
    if isinstance(found, list):  # what Python makes of it
        text = io.TextIOWrapper(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), "utf-8").read()
        assert found == text.removesuffix("\n").split("\n")
        path.write_bytes(data)
        assert "".join(read_chunks([path])) == text.removesuffix("\n") + "\n"


def test_long_lines_are_cut_at_spaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 300_000)
    chunks = list(read_chunks([path]))
    assert max(map(len, chunks)) < 1 << 20
    assert "".join(chunks).split() == ["word"] * 300_000
    assert list(read_lines(path)) == ["word " * 300_000]


DAMAGED = [
    (None, "does not exist"),
    (b"", "is empty"),
    (b"caf\xe9 au lait\n", "is not UTF-8: byte 0xe9"),
    (
        "これは日本語です。\n".encode("shift-jis"),
        "from its encoding, such as SHIFT-JIS .*if it is Western European text",
    ),
    (gzip.compress(os.urandom(9000), mtime=0)[:-20], "cannot be read|is not UTF-8|NUL"),
    (gzip.compress(b"some text\n" * 1000, mtime=0)[:-20], "cannot be read"),
    (lzma.compress(b"some text\n" * 1000)[:-20], "cannot be read"),
    (bz2.compress(b"some text\n" * 1000)[:-20], "cannot be read"),
    (b"x" * 3 * 10**6, "without a space"),
]


@pytest.mark.parametrize(("data", "message"), DAMAGED)
def test_bad_files_are_named(tmp_path, data, message):
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        list(read_chunks([path]))
    assert str(path) in str(error.value)


def test_files_directories_and_patterns_name_texts(tmp_path):
    for name in ("b/2", "b/1", "b/.hidden", "b/sub/3", "a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\n")
    assert list_texts(None) == [] and list_texts("-") == [Path("-")]
    found = list_texts([tmp_path / "b", str(tmp_path / "b" / "*"), tmp_path / "a"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/1", "b/2", "b/sub/3", "b/1", "b/2", "a"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("train.npy", "vocabulary.json"):
        (tmp_path / "data" / name).write_bytes(b"\x93")
    corpus = f"{tmp_path / 'data'} is a prepared corpus.*jaxlm train {tmp_path / 'data'} --out RUN"
    refused = [
        ("empty", "without files"),
        ("c*", "No file matches"),
        ("data", corpus),
        ("data/*", corpus),
        (".", corpus),
    ]
    for source, message in ((tmp_path / name, message) for name, message in refused):
        with pytest.raises(InputError, match=message):
            list_texts(source)
