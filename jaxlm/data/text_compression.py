"""Decompresses texts while they are read. The first bytes tell the kind of compression, not the name."""

import bz2
import gzip
import importlib.util
import io
import logging
import lzma
import re
from collections.abc import Callable
from typing import Any, BinaryIO

from jaxlm.data.text_diagnosis import TextSource, describe_archive
from jaxlm.errors import InputError

START_BYTES = 4096  # read to recognize the kind of a text
BUFFER_BYTES = 1 << 18

logger = logging.getLogger(__name__)


class _Unread(io.RawIOBase):
    """A file with its first bytes, which were read already, put back in front."""

    def __init__(self, start: bytes, file: Any):
        self.start, self.file = start, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        data = self.start[:size] or (self.file.read1(size) if hasattr(self.file, "read1") else self.file.read(size))
        self.start = self.start[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def decompressed(name: TextSource, file: BinaryIO | io.RawIOBase) -> tuple[io.BufferedReader, bytes]:
    """Returns a file, decompressed if it is gzip, bzip2, xz or zstd, and its first bytes, which are read again from it.

    Raises:
      InputError: the file is an archive, or compressed in another way; names the command that unpacks it.
    """
    data, start = _peek(file)
    kind, opener = _opener(start)
    if opener is not None:
        if not name.suffix.endswith(_SUFFIXES[kind]):
            logger.warning("%s is compressed with %s: it is unpacked while it is read", name, kind)
        data, start = _peek(opener(data))
    if problem := describe_archive(name, start):
        raise InputError(problem)
    return data, start


def _peek(file: Any) -> tuple[io.BufferedReader, bytes]:
    start = b""
    while len(start) < START_BYTES and (block := file.read(START_BYTES - len(start))):  # a pipe gives a few at a time
        start += block
    return io.BufferedReader(_Unread(start, file), BUFFER_BYTES), start


_MAGIC = {
    rb"\x1f\x8b\x08": "gzip",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
}
_SUFFIXES = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst"}


def _opener(start: bytes) -> tuple[str, Callable[[BinaryIO], Any] | None]:
    """Returns the kind of compression, "" for none, and the function that opens it, None if there is none."""
    kind = next((kind for magic, kind in _MAGIC.items() if re.match(magic, start)), "")
    if kind == "zstd":
        return kind, _zstd()
    openers: dict[str, Callable[[BinaryIO], Any]] = {"gzip": _gzip, "bzip2": bz2.open, "xz": lzma.open}
    return kind, openers.get(kind)


def _gzip(file: BinaryIO) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=file)


def _zstd() -> Callable[[BinaryIO], Any] | None:
    """Returns the zstd reader of Python 3.14, or that of the package `zstandard`, if one of them is there."""
    if importlib.util.find_spec("compression"):
        return importlib.import_module("compression.zstd").open
    if importlib.util.find_spec("zstandard"):
        decompressor = importlib.import_module("zstandard").ZstdDecompressor()
        return lambda file: decompressor.stream_reader(file, read_across_frames=True)
    return None
