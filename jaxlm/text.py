"""Text files to tokens: streamed, and cut into words as fast as a dictionary can look them up."""

import gzip
import lzma
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Literal

import numpy as np
from tokenizers import Regex, pre_tokenizers

from jaxlm.errors import InputError

Tokenization = Literal["words", "whitespace"]
PATTERNS = {  # a line end is a token of its own; <unk> in a prepared corpus stays whole
    "words": r"\n|<unk>|<eos>|\w+|[^\w\s]",
    "whitespace": r"\n|\S+",
}
ENCODING = "utf-8-sig"  # UTF-8; the byte order mark that some editors write is not part of the text
CHUNK_CHARS = 1 << 18
CACHED_CHARS = 1 << 24


def tokenizer(tokenization: Tokenization) -> pre_tokenizers.PreTokenizer:
    """Returns the `tokenizers` pre-tokenizer that cuts text into words and line ends."""
    return pre_tokenizers.Split(Regex(PATTERNS[tokenization]), "removed", invert=True)


def auto_ids() -> defaultdict[str, int]:
    """Returns a dictionary that gives each new key the next id, from 0."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    return ids


class PieceEncoder:
    """Encodes text by pieces, what lies between two spaces, and tokenizes each piece only once.

    No token contains a space, so a piece can be looked up when it comes again. By Zipf's law nearly every
    piece has come before, which makes this far faster than tokenizing all of the text.

    Args:
      tokenization: how text is cut into tokens.
      id_of: returns the id of a token; "\\n" is a line end.
    """

    def __init__(self, tokenization: Tokenization, id_of: Callable[[str], int]):
        self.tokenizer, self.id_of = tokenizer(tokenization), id_of
        self.clear()

    def clear(self) -> None:
        """Forgets all pieces."""
        self.pieces = auto_ids()
        self.ids = array("i")  # of the tokens of all pieces, piece after piece
        self.ends = array("q", [0])  # piece n has ids[ends[n] : ends[n + 1]]
        self.chars = 0

    def encode(self, chunk: str) -> np.ndarray:
        """Returns the ids `[N]` int32 of a chunk of text that ends at a space or a line end."""
        if self.chars > CACHED_CHARS:  # memory stays bounded, however long the text is
            self.clear()
        known = len(self.pieces)
        pieces = chunk.replace("\n", " \n ").split(" ")
        sequence = np.fromiter(map(self.pieces.__getitem__, pieces), np.int64, len(pieces))
        new = reversed(list(islice(reversed(self.pieces), len(self.pieces) - known)))
        for piece in new:
            self.ids.extend(self.id_of(token) for token, _ in self.tokenizer.pre_tokenize_str(piece))
            self.ends.append(len(self.ids))
            self.chars += len(piece)
        return _concatenate_slices(np.asarray(self.ids), np.asarray(self.ends), sequence)


def _concatenate_slices(values: np.ndarray, ends: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Concatenates values[ends[i] : ends[i + 1]] for each i of the sequence."""
    starts, lengths = ends[sequence], ends[sequence + 1] - ends[sequence]
    shifts = starts - (np.cumsum(lengths) - lengths)  # from a position in the result to that in `values`
    return values[np.repeat(shifts, lengths) + np.arange(lengths.sum())]


def read_chunks(paths: Iterable[Path]) -> Iterator[str]:
    """Yields the texts (plain, .gz or .xz) in chunks that end at a line end or a space.

    Raises:
      InputError: a file is missing, empty, truncated, or not UTF-8; names the file and the position.
    """
    for path in paths:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[str]:
    rest, chars = "", 0
    try:
        with _open(path) as file:
            while text := file.read(CHUNK_CHARS):
                chars += len(text)
                text = rest + text
                cut = max(text.rfind("\n"), text.rfind(" ")) + 1
                rest = text[cut:]
                if len(rest) > 8 * CHUNK_CHARS:
                    raise InputError(
                        f"{path}: expected text. Received: {len(rest)} characters without a space or line end."
                    )
                if cut:
                    yield text[:cut]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} after about {chars} characters"
            f" ({error.reason}). Convert it first, for example with: iconv -f latin1 -t utf-8."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected a text file, plain, .gz or .xz.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory; expected a text file, plain, .gz or .xz.") from error
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not chars:
        raise InputError(f"{path} is empty; expected text.")
    if rest:
        yield rest + "\n"  # the last line ends as well


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=ENCODING)
    return lzma.open(path, "rt", encoding=ENCODING) if path.suffix == ".xz" else path.open(encoding=ENCODING)
