"""`Vocabulary`: words sorted by decreasing frequency, counted in the training text only."""

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from tokenizers import Tokenizer, models

from jaxlm.errors import InputError, require
from jaxlm.files import read_json, write_json
from jaxlm.text import Tokenization, tokenizer

UNK = "<unk>"  # any word that is not in the vocabulary
EOS = "<eos>"  # the end of a line
FORMAT = 1  # of vocabulary.json


@dataclass(frozen=True)
class Vocabulary:
    """Words and their counts in the training text. The id of a word is its index.

    Args:
      words: distinct, by decreasing count, with `<unk>` and `<eos>` at the rank their counts earn.
      counts: occurrences of each word in the training text.
      tokenization: how text is cut: "words" (words and punctuation marks) or "whitespace".

    Raises:
      InputError: words repeat, a reserved word is missing, or counts do not decrease.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    tokenization: Tokenization

    def __post_init__(self) -> None:
        choices = get_args(Tokenization)
        require(self.tokenization in choices, "tokenization", f"one of {choices}", self.tokenization)
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
        result = Tokenizer(models.WordLevel(self.ids | {"\n": self.ids[EOS]}, unk_token=UNK))
        result.pre_tokenizer = tokenizer(self.tokenization)
        return result

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, `[N]` int32. Line ends become `<eos>`, unknown words `<unk>`.

        >>> Vocabulary(("the", "<eos>", "sea", "<unk>"), (9, 4, 4, 0), "words").encode("the sea!\\n")
        array([0, 2, 3, 1], dtype=int32)
        """
        return np.array(self.tokenizer.encode(text).ids, np.int32)

    def ids_of(self, tokens: Iterable[str]) -> np.ndarray:
        """Returns the ids of tokens, `[N]` int32, as `encode` does."""
        ids = self.ids | {"\n": self.ids[EOS]}
        return np.array([ids.get(token, ids[UNK]) for token in tokens], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Joins words with spaces, except around punctuation marks. `<eos>` becomes a line end."""
        text = " ".join("\n" if self.words[i] == EOS else self.words[i] for i in ids).replace(" \n ", "\n")
        if self.tokenization == "words":
            for mark in ",.;:!?)]}’”":
                text = text.replace(" " + mark, mark)
            for mark in "([{“‘'-—_":
                text = text.replace(mark + " ", mark)
            for mark in "’'-—_":
                text = text.replace(" " + mark, mark)
        return text

    @cached_property
    def checksum(self) -> str:
        """CRC-32 of the words and their counts."""
        return f"{zlib.crc32(repr((self.words, self.counts)).encode()):08x}"

    @property
    def log_unigram(self) -> np.ndarray:
        """Log-probabilities of the words by their counts, `[V]` float32. A count of 0 is taken as 1."""
        counts = np.maximum(np.array(self.counts, np.float64), 1.0)
        return np.log(counts / counts.sum()).astype(np.float32)

    @property
    def zipf_divergence(self) -> float:
        """Divergence of the word frequencies from the log-uniform distribution: sum of p log(p / P(id)), in nats.

        About 0.1 for ordinary text, 0.9 for 1,000 equally frequent words.
        """
        n = np.arange(1, len(self) + 1)
        log_uniform = np.log(np.log1p(1.0 / n) / np.log(len(self) + 1.0))
        log_unigram = self.log_unigram.astype(np.float64)
        return float(np.exp(log_unigram) @ (log_unigram - log_uniform))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON."""
        value = {"tokenization": self.tokenization, "words": self.words, "counts": self.counts}
        write_json(Path(path), value, FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          InputError: the file is missing, of another format, or does not hold a vocabulary.
        """
        value = read_json(Path(path), FORMAT)
        try:
            words, counts, tokenization = value["words"], value["counts"], value["tokenization"]
            if not all(isinstance(word, str) for word in words) or not all(isinstance(n, int) for n in counts):
                raise TypeError("words must be strings and counts integers")
            return cls(tuple(words), tuple(counts), tokenization)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"{path} does not hold a vocabulary: {error}") from error


def select_words(tokens: Iterable[str], counts: np.ndarray, vocab_size: int, tokenization: Tokenization) -> Vocabulary:
    """Keeps the most frequent words. The others count as `<unk>`, except words that never occur.

    Args:
      tokens: the distinct tokens of a text, "\\n" for a line end.
      counts: `[types]` occurrences of each.
      vocab_size: maximum number of words, including `<unk>` and `<eos>`.
      tokenization: how the text was cut.
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
    return Vocabulary(tuple(order), tuple(total[word] for word in order), tokenization)
