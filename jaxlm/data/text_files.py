"""Lines of a text from a file or the standard input, streamed, with their numbers in every error."""

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxlm.data.corpus import PathLike
from jaxlm.data.tokenization import read_chunks
from jaxlm.errors import InputError

STANDARD_INPUT = Path("-")


def read_lines(source: PathLike) -> Iterator[str]:
    """Yields the lines of a text (plain, .gz or .xz) in UTF-8, without line ends.

    Args:
      source: file, or "-" for the standard input.

    Raises:
      InputError: the file is missing, empty or truncated, or a line is not UTF-8 text; names the file and the line.
    """
    path = Path(source)
    if path == STANDARD_INPUT:
        yield from _decoded(sys.stdin.buffer, "The standard input")
    elif path.exists() and not (path.is_file() or path.is_dir()):  # a pipe, which can be read only once
        with path.open("rb") as file:
            yield from _decoded(file, str(path))
    else:
        yield from _joined(read_chunks([path]))


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {line[error.start]:#04x} ({error.reason})"
            raise InputError(f"{name}, line {number}: expected UTF-8 text. Received: {byte}.") from error
        if "\0" in text:
            raise InputError(f"{name}, line {number}: expected plain text. Received: a NUL byte.")
        yield text.rstrip("\r\n")


def _joined(chunks: Iterator[str]) -> Iterator[str]:
    """Yields the lines of chunks that end at a line end or a space; the last chunk ends at a line end."""
    begun: list[str] = []  # pieces of the line that the chunk before did not end
    for chunk in chunks:
        first, *others = chunk.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
