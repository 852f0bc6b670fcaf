"""Text to ids: words sorted by decreasing frequency, counted in the training text only."""

import gzip
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from jaxlm.config import InputError, read_json, require, write_json

UNK = "<unk>"  # any word that is not in the vocabulary
EOS = "<eos>"  # the end of a line
Split = Literal["words", "whitespace"]
PATTERNS = {  # a line end is a token of its own; <unk> in a prepared corpus stays whole
    "words": r"\n|<unk>|<eos>|\w+|[^\w\s]",
    "whitespace": r"\n|\S+",
}
ENCODING = "utf-8-sig"  # UTF-8, and the byte order mark that some editors write is no word
CHUNK_CHARS = 1 << 16
CHUNKS_PER_BATCH = 32


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
        ids = self.ids | {"\n": self.ids[EOS]}
        return _with_pattern(Tokenizer(models.WordLevel(ids, unk_token=UNK)), self.split)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, `[N]` int32; line ends become `<eos>`."""
        return np.array(self.tokenizer.encode(text).ids, np.int32)

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


def _with_pattern(tokenizer: Tokenizer, split: Split) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERNS[split]), "removed", invert=True)
    return tokenizer


def count_words(chunks: Iterable[list[str]], split: Split) -> Tokenizer:
    """Returns a tokenizer with every word of the text, "\\n" for line ends.

    Memory grows with the number of distinct words, not with the text.
    """
    tokenizer = _with_pattern(Tokenizer(models.WordLevel(unk_token=UNK)), split)
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=0, show_progress=False, special_tokens=[UNK]
    )
    tokenizer.train_from_iterator(chunks, trainer)
    return tokenizer


def encode_chunks(tokenizer: Tokenizer, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Yields the ids of the text, int32 arrays, one after the other; uses all cores."""
    for batch in chunks:
        for encoding in tokenizer.encode_batch_fast(batch):
            yield np.array(encoding.ids, np.int32)


def select_words(
    tokenizer: Tokenizer, counts: np.ndarray, vocab_size: int, split: Split
) -> tuple[Vocabulary, np.ndarray]:
    """Keeps the most frequent words; all others count as `<unk>`, those with a count of 0 not at all.

    Args:
      tokenizer: with every word, as from `count_words`.
      counts: `[types]` occurrences of each.
      vocab_size: number of words to keep at most, `<unk>` and `<eos>` among them.
      split: what the tokenizer was made with.

    Returns:
      The vocabulary, and the new id of each of the tokenizer's ids, `[types]` int32.
    """
    words = [UNK] * len(counts)
    for word, i in tokenizer.get_vocab().items():
        words[i] = EOS if word == "\n" else word
    total = Counter({UNK: 0, EOS: 0})
    for word, count in zip(words, counts.tolist(), strict=True):
        total[word] += count

    def rank(word: str) -> tuple[int, str]:
        return -total[word], word

    by_count = sorted((word for word, count in total.items() if count and word not in (UNK, EOS)), key=rank)
    kept, dropped = by_count[: vocab_size - 2], by_count[vocab_size - 2 :]
    total[UNK] += sum(total[word] for word in dropped)
    order = sorted([UNK, EOS, *kept], key=rank)
    vocabulary = Vocabulary(tuple(order), tuple(total[word] for word in order), split)
    new_id = np.array([vocabulary.ids.get(word, vocabulary.ids[UNK]) for word in words], np.int32)
    return vocabulary, new_id


def read_chunks(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Yields lists of pieces of the texts (plain, .gz or .xz), cut at line ends or else at spaces.

    Raises:
      InputError: a file is missing, empty, truncated, or not UTF-8; names it and the place.
    """
    for path in paths:
        batch: list[str] = []
        for chunk in _read_file(path):
            batch.append(chunk)
            if len(batch) == CHUNKS_PER_BATCH:
                yield batch
                batch = []
        yield batch


def _read_file(path: Path) -> Iterator[str]:
    rest, chars = "", 0
    try:
        with _open(path) as file:
            while text := file.read(CHUNK_CHARS):
                chars += len(text)
                text = rest + text
                cut = max(text.rfind("\n"), text.rfind(" ") if len(text) > 4 * CHUNK_CHARS else -1) + 1
                rest = text[cut:]
                if len(rest) > 8 * CHUNK_CHARS:
                    raise InputError(f"{path}: expected text. Received: {len(rest)} characters without a space.")
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
