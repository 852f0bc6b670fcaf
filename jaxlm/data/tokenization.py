"""Splits text into words, and encodes it as fast as a dictionary can look words up."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Regex, pre_tokenizers

from jaxlm.errors import require


class KerasTokenizer(NamedTuple):
    """Settings of a Keras `Tokenizer`, which splits text at spaces."""

    lower: bool = True  # whether letters are lower-cased first
    filters: str = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'  # characters replaced by a space


Tokenization = Literal["words", "whitespace", "text_vectorization"] | KerasTokenizer
PATTERNS = {  # a line end is a token of its own; markers that toolkits write, such as <unk>, stay whole
    # joiners and combining marks stay within a word; a flag, or a symbol with what modifies it, is one token
    "words": r"\n|<(?:unk|UNK|Unk|unknown|OOV|eos|EOS|[bs]os|BOS|/?[sS])>|\[(?:UNK|CLS|SEP)\]|<\|endoftext\|>"
    r"|\w(?:\w|[\x{200c}\x{200d}])*|[\x{1f1e6}-\x{1f1ff}]{2}"
    r"|[^\w\s](?:\x{200d}[^\w\s]|[\p{M}\x{200c}\x{200d}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}])*",
    "whitespace": r"\n|\S+",
    "text_vectorization": r"\n|[^ \t\n\x0b\f\r]+",  # of text in lower case without punctuation
}
ASCII_LOWER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
PUNCTUATION = "!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'"  # that TextVectorization strips
CACHED_CHARS = 1 << 24


def tokenization_of(value: Any) -> Any:
    """Returns the `Tokenization` that a name, or an object of vocabulary.json, stands for; anything else unchanged."""
    if value == "keras_tokenizer":
        return KerasTokenizer()
    if isinstance(value, dict) and value.keys() == set(KerasTokenizer._fields):
        if isinstance(value["lower"], bool) and isinstance(value["filters"], str):
            return KerasTokenizer(**value)
    return value


def tokenizer(tokenization: Tokenization) -> Callable[[str], list[str]]:
    """Returns the function that cuts text into words and line ends, "\\n".

    "words" keeps words and punctuation marks; "whitespace" splits at blanks. "text_vectorization" and
    `KerasTokenizer` cut each line as Keras' layer and Keras' class do.

    Raises:
      InputError: there is no such tokenization.

    >>> tokenizer("words")("Don't stop.\\n")
    ['Don', "'", 't', 'stop', '.', '\\n']
    >>> tokenizer("text_vectorization")("Don't stop.\\n")
    ['dont', 'stop', '\\n']
    """
    if isinstance(tokenization, KerasTokenizer):
        blanks = dict.fromkeys(map(ord, tokenization.filters), " ") | {ord("\n"): " \n "}

        def split(text: str) -> list[str]:
            text = text.lower() if tokenization.lower else text
            return [word for word in text.translate(blanks).split(" ") if word]

        return split
    names = (*PATTERNS, "keras_tokenizer")
    require(tokenization in names[:-1], "tokenization", f"one of {names}", tokenization)
    splitter = _splitter(PATTERNS[tokenization])
    stripped = ASCII_LOWER | dict.fromkeys(map(ord, PUNCTUATION)) if tokenization == "text_vectorization" else None

    def match(text: str) -> list[str]:
        text = text.translate(stripped) if stripped else text
        return [word for word, _ in splitter.pre_tokenize_str(text)]

    return match


@cache
def _splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "removed", invert=True)


def auto_ids() -> defaultdict[str, int]:
    """Returns a dictionary that gives each new key the next id, from 0."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    return ids


class PieceEncoder:
    """Encodes text in pieces, split at spaces, and tokenizes each distinct piece only once.

    No token contains a space, so a piece can be looked up when it comes again. By Zipf's law nearly every
    piece has come before, which makes this far faster than tokenizing all of the text.

    Args:
      tokenization: how text is cut into tokens.
      id_of: returns the id of a token; "\\n" is a line end.
      dropped: tokens to leave out.

    Attributes:
      found: the tokens that were left out.
    """

    def __init__(self, tokenization: Tokenization, id_of: Callable[[str], int], dropped: Iterable[str] = ()):
        self.tokenize, self.id_of = tokenizer(tokenization), id_of
        self.dropped = frozenset(dropped)
        self.found: set[str] = set()
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
            tokens = self.tokenize(piece)
            if not self.dropped.isdisjoint(tokens):
                self.found.update(self.dropped.intersection(tokens))
                tokens = [token for token in tokens if token not in self.dropped]
            self.ids.extend(map(self.id_of, tokens))
            self.ends.append(len(self.ids))
            self.chars += len(piece)
        return _concatenate_slices(np.asarray(self.ids), np.asarray(self.ends), sequence)


def _concatenate_slices(values: np.ndarray, ends: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Concatenates values[ends[i] : ends[i + 1]] for each i of the sequence."""
    starts, lengths = ends[sequence], ends[sequence + 1] - ends[sequence]
    shifts = starts - (np.cumsum(lengths) - lengths)  # from a position in the result to that in `values`
    return values[np.repeat(shifts, lengths) + np.arange(lengths.sum())]
