"""Texts from files, pipes and the standard input: opened once, decompressed, decoded, and read as chunks or lines."""

import codecs
import glob
import io
import lzma
import os
import shlex
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jaxlm.data.text_compression import decompressed
from jaxlm.data.text_diagnosis import TextSource, describe_bytes, describe_nul, wrong_encoding
from jaxlm.data.vocabulary import VOCABULARY_FILE
from jaxlm.errors import InputError, reason
from jaxlm.files import PathLike

STANDARD_INPUT = Path("-")
CHUNK_BYTES = 1 << 18
MAX_WORD = 1 << 21  # characters


def list_texts(sources: PathLike | Sequence[PathLike] | None) -> list[Path]:
    """Returns the files that `sources` names: files, "-" for the standard input, directories, or patterns with `*`.

    Those of a directory or a pattern are sorted by name; hidden files are left out.

    Raises:
      InputError: a file does not exist, a directory or a pattern has no files, or a file is of a prepared corpus.
    """
    paths: list[Path] = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources or []:
        path = Path(source)
        if path.is_dir():
            inner = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
            found = sorted(path / file for file in inner if not any(part.startswith(".") for part in file.parts))
            if not found:
                raise InputError(f"{path} is a directory without files; expected texts in it.")
        elif glob.has_magic(str(path)) and not path.exists():
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
            if not found:
                raise InputError(f"No file matches {path}; expected a text.")
        elif path == STANDARD_INPUT or path.exists():
            found = [path]
        else:
            raise InputError(_missing(TextSource(path)))
        paths += found
    for path in paths:
        if path.name == "train.npy" and path.with_name(VOCABULARY_FILE).is_file():
            data = path.parent
            raise InputError(
                f"{data} is a prepared corpus; expected texts. Train on it, `jaxlm train {shlex.quote(str(data))} --out"
                " RUN`, or name the texts it was made of."
            )
    return paths


def read_lines(source: PathLike) -> Iterator[str]:
    """Yields the lines of a text in UTF-8, without line ends.

    Args:
      source: file, plain or compressed, pipe, or "-" for the standard input.

    Raises:
      InputError: the text is missing, empty, truncated, or not UTF-8; names the line, and a command that converts it.
    """
    begun: list[str] = []  # parts of a line whose end has not been read yet
    for block in _decoded(source):
        first, *others = block.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun = [others[-1]]


def read_text(source: PathLike) -> str:
    """Returns a whole text, as `read_lines` reads it. Its last line ends with a line end."""
    return "".join(_decoded(source))


def read_chunks(sources: Iterable[PathLike]) -> Iterator[str]:
    """Yields texts, one after another, in chunks that end at a line end or a space.

    Raises:
      InputError: as of `read_lines`, or a text has no spaces.
    """
    for source in sources:
        rest = ""
        for block in _decoded(source):
            text = rest + block
            cut = max(text.rfind("\n"), text.rfind(" ")) + 1
            rest = text[cut:]
            if len(rest) > MAX_WORD:
                raise InputError(
                    f"{TextSource(source)}: expected text. Received: {len(rest)} characters without a space or line"
                    " end. If its language is written without spaces, cut it into words first, with a space between"
                    " them."
                )
            if cut:
                yield text[:cut]


def _missing(name: TextSource) -> str:
    return f"{name} does not exist; expected a text file, plain or compressed."


def _decoded(source: PathLike) -> Iterator[str]:
    """Yields blocks of a text. Each kind of line end becomes "\\n", and the last line ends as well."""
    name = TextSource(source)
    try:
        if Path(source) == STANDARD_INPUT:
            yield from _decode(name, sys.stdin.buffer)
        else:
            with Path(source).open("rb", buffering=0) as file:
                yield from _decode(name, file)
    except FileNotFoundError as error:
        raise InputError(_missing(name)) from error
    except IsADirectoryError as error:
        raise InputError(f"{name} is a directory; expected a text file, plain or compressed.") from error
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise InputError(f"{name} cannot be read: {reason(error)}") from error


def _decode(name: TextSource, file: BinaryIO | io.RawIOBase) -> Iterator[str]:
    data, start = decompressed(name, file)
    if problem := wrong_encoding(name, start):
        raise InputError(problem)
    if start.startswith(codecs.BOM_UTF8):
        data.read(len(codecs.BOM_UTF8))
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    lines, has_utf8, text = 0, False, ""
    while True:
        block = data.read1(CHUNK_BYTES)
        try:
            decoded = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise InputError(describe_bytes(name, error, lines, has_utf8)) from error
        if "\0" in decoded:
            raise InputError(describe_nul(name, decoded, lines))
        if decoded:
            lines, has_utf8 = lines + decoded.count("\n"), has_utf8 or not decoded.isascii()
            text = decoded
            yield decoded
        if not block:
            break
    if not text:
        raise InputError(f"{name} is empty; expected text.")
    if not text.endswith("\n"):
        yield "\n"
