"""Text to ids: words sorted by decreasing frequency, counted in the training text only."""

import gzip
import lzma
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from jaxlm.config import InputError, read_json, require, write_json

UNK = "<unk>"  # any word that is not in the vocabulary
EOS = "<eos>"  # the end of a line
Split = Literal["words", "whitespace"]
PATTERNS = {  # a line end is a token of its own; <unk> in a prepared corpus stays whole
    "words": r"\n|<unk>|<eos>|\w+|[^\w\s]",
    "whitespace": r"\n|\S+",
}
ENCODING = "utf-8-sig"  # UTF-8, and the byte order mark that some editors write is no word
CHUNK_CHARS = 1 << 18
MAX_REMEMBERED = 1 << 24  # characters


@dataclass(frozen=True)
class Vocabulary:
    """Words and their counts in the training text; a word's id is its place.

    Args:
      words: distinct, by decreasing count, `<unk>` and `<eos>` at the rank their counts earn.
      counts: occurrences of each word in the training text.
      split: how text is cut: "words" (words, and each punctuation mark) or "whitespace".

    Raises:
      InputError: words repeat, a reserved word is missing, or counts do not decrease.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    split: Split

    def __post_init__(self) -> None:
        require(self.split in get_args(Split), "split", f"one of {get_args(Split)}", self.split)
        require(len(self.ids) == len(self.words), "words", "distinct words", f"{len(self.words)} words with repeats")
        for word in (UNK, EOS):
            require(word in self.ids, "words", f"{word} among them", f"{len(self.words)} words")
        require(len(self.counts) == len(self.words), "counts", f"{len(self.words)}, one a word", len(self.counts))
        decreasing = all(first >= second for first, second in zip(self.counts, self.counts[1:], strict=False))
        require(decreasing and self.counts[-1] >= 0, "counts", "decreasing counts of at least 0", self.counts[:8])

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` that cuts text and looks words up."""
        tokenizer = Tokenizer(models.WordLevel(self.ids | {"\n": self.ids[EOS]}, unk_token=UNK))
        tokenizer.pre_tokenizer = _cutter(self.split)
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, `[N]` int32; line ends become `<eos>`."""
        return np.array(self.tokenizer.encode(text).ids, np.int32)

    def ids_of(self, tokens: Iterable[str]) -> np.ndarray:
        """Returns the id of each token, `[N]` int32: `<unk>`'s of an unknown one, `<eos>`'s of a line end."""
        ids = self.ids | {"\n": self.ids[EOS]}
        return np.array([ids.get(token, ids[UNK]) for token in tokens], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Joins words with spaces, but none before a closing mark; `<eos>` becomes a line end."""
        text = " ".join("\n" if self.words[i] == EOS else self.words[i] for i in ids).replace(" \n ", "\n")
        if self.split == "words":
            for mark in ",.;:!?)]}’”":
                text = text.replace(" " + mark, mark)
            for mark in "([{“‘'-—_":
                text = text.replace(mark + " ", mark)
            for mark in "’'-—_":
                text = text.replace(" " + mark, mark)
        return text

    @property
    def log_unigram(self) -> np.ndarray:
        """Log-probabilities of the words by their counts, `[V]` float32; a count of 0 is taken as 1."""
        counts = np.maximum(np.array(self.counts, np.float64), 1.0)
        return np.log(counts / counts.sum()).astype(np.float32)

    @property
    def zipf_divergence(self) -> float:
        """How far the words' law is from the log-uniform one, in nats: sum of p log(p / P(id)).

        About 0.1 in ordinary text, 0.9 where 1,000 words are equally frequent.
        """
        n = np.arange(1, len(self) + 1)
        log_uniform = np.log(np.log1p(1.0 / n) / np.log(len(self) + 1.0))
        log_unigram = self.log_unigram.astype(np.float64)
        return float(np.exp(log_unigram) @ (log_unigram - log_uniform))

    def save(self, path: Path) -> None:
        """Writes the vocabulary as JSON."""
        write_json(path, {"split": self.split, "words": self.words, "counts": self.counts})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          InputError: the file is missing or does not hold a vocabulary.
        """
        value = read_json(path)
        try:
            words, counts, split = value["words"], value["counts"], value["split"]
            if not all(isinstance(word, str) for word in words) or not all(isinstance(n, int) for n in counts):
                raise TypeError("words are strings and counts integers")
            return cls(tuple(words), tuple(counts), split)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"{path} does not hold a vocabulary: {error}") from error


def _cutter(split: Split) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(PATTERNS[split]), "removed", invert=True)


def encode_chunks(chunks: Iterable[str], split: Split, id_of: Callable[[str], int]) -> Iterator[np.ndarray]:
    """Yields the ids of the text, int32 arrays, one after the other.

    No token holds a space, so that what lies between two spaces is cut into tokens when it first comes and looked
    up from then on, far faster: by Zipf's law nearly all of a text has come before.

    Args:
      chunks: pieces of the text, cut at line ends or spaces.
      split: how it is cut into tokens.
      id_of: the id of a token, "\\n" for a line end.
    """
    cutter = _cutter(split)
    places, tokens, ends, remembered = numbering(), array("i"), array("q", [0]), 0
    for chunk in chunks:
        if remembered > MAX_REMEMBERED:  # memory stays the same however long the text is
            places.clear()
            del tokens[:], ends[1:]
            remembered = 0
        known = len(places)
        pieces = chunk.replace("\n", " \n ").split(" ")
        sequence = np.fromiter(map(places.__getitem__, pieces), np.int64, len(pieces))
        for piece in reversed(list(islice(reversed(places), len(places) - known))):  # those that are new
            tokens.extend(id_of(token) for token, _ in cutter.pre_tokenize_str(piece))
            ends.append(len(tokens))
            remembered += len(piece)
        yield _concatenated(np.asarray(tokens), np.asarray(ends), sequence)


def numbering() -> defaultdict[str, int]:
    """Returns a dictionary that gives each new key the next number, from 0."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    return numbers


def _concatenated(values: np.ndarray, ends: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Concatenates values[ends[i] : ends[i + 1]] for each i of the sequence."""
    starts, lengths = ends[sequence], ends[sequence + 1] - ends[sequence]
    shifts = starts - (np.cumsum(lengths) - lengths)  # from the place in the result to that in `values`
    return values[np.repeat(shifts, lengths) + np.arange(lengths.sum())]


def select_words(tokens: Iterable[str], counts: np.ndarray, vocab_size: int, split: Split) -> Vocabulary:
    """Keeps the most frequent words; all others count as `<unk>`, those with a count of 0 not at all.

    Args:
      tokens: each token of a text once, "\\n" for a line end.
      counts: `[types]` occurrences of each.
      vocab_size: number of words to keep at most, `<unk>` and `<eos>` among them.
      split: how the text was cut.
    """
    words = [EOS if token == "\n" else token for token in tokens]
    total = Counter({UNK: 0, EOS: 0})
    for word, count in zip(words, counts.tolist(), strict=True):
        total[word] += count

    def rank(word: str) -> tuple[int, str]:
        return -total[word], word

    by_count = sorted((word for word, count in total.items() if count and word not in (UNK, EOS)), key=rank)
    kept, dropped = by_count[: vocab_size - 2], by_count[vocab_size - 2 :]
    total[UNK] += sum(total[word] for word in dropped)
    order = sorted([UNK, EOS, *kept], key=rank)
    return Vocabulary(tuple(order), tuple(total[word] for word in order), split)


def read_chunks(paths: Iterable[Path]) -> Iterator[str]:
    """Yields pieces of the texts (plain, .gz or .xz), cut at line ends or spaces.

    Raises:
      InputError: a file is missing, empty, truncated, or not UTF-8; names it and the place.
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
            f" ({error.reason}). Convert it, for example with: iconv -f latin1 -t utf-8."
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
        yield rest + "\n"  # the last line ends, too


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=ENCODING)
    return lzma.open(path, "rt", encoding=ENCODING) if path.suffix == ".xz" else path.open(encoding=ENCODING)
