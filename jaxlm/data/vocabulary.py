"""`Vocabulary`: words sorted by decreasing frequency, counted in the training text only."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.data.tokenization import KerasTokenizer, Tokenization, tokenization_of, tokenizer
from jaxlm.errors import InputError, require
from jaxlm.files import PathLike, read_json, write_json

UNK = "<unk>"  # any word that is not in the vocabulary
EOS = "<eos>"  # the end of a line
PAD = ""  # padding, as Keras' TextVectorization names it; no text has it
UNUSED = "<unused {}>"  # an id without a word in a Keras model; no text has it, since no word has a space
VOCABULARY_FILE, FORMAT = "vocabulary.json", 1
MAX_COUNT = 2**62  # so that sums fit into 64 bits


@dataclass(frozen=True)
class Vocabulary:
    """Words and their counts in the training text. The id of a word is its index.

    A vocabulary of `jaxlm.prepare` has `<unk>` and `<eos>`, at the rank their counts earn. One of a Keras model may
    lack them: unknown words, or line ends, are then left out of a text, as Keras leaves them out.

    Args:
      words: distinct, by decreasing count; a list becomes a tuple.
      counts: integers, the occurrences of each word in the training text; None if they are not known.
      tokenization: how text is cut: "words" (words and punctuation marks), "whitespace", or as Keras does,
        "text_vectorization" or a `KerasTokenizer`.
      dropped: words that are left out of every text, such as the sentence markers "<s>" and "</s>".

    Raises:
      InputError: there are no words, words repeat or are no text, or counts do not decrease.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...] | None
    tokenization: Tokenization
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tokenizer(self.tokenization)  # raises if there is no such tokenization
        for name in ("words", "dropped"):
            given = getattr(self, name)
            require(isinstance(given, Sequence) and not isinstance(given, str), name, "a list of strings", given)
            others = [word for word in given if not isinstance(word, str)]
            require(not others, name, "a list of strings", others[:8])
            object.__setattr__(self, name, tuple(given))
        if self.counts is not None:
            expected = "integers, or None if they are not known"
            try:
                counts = np.asarray(self.counts)
            except ValueError as error:  # a ragged list
                raise InputError(f"Invalid `counts`: expected {expected}. Received: {error}") from error
            fits = counts.dtype.kind in "iu" and counts.ndim == 1
            require(fits, "counts", expected, f"{counts.dtype} {counts.shape}")
            object.__setattr__(self, "counts", tuple(counts.tolist()))
        require(bool(self.words), "words", "at least one word", self.words)
        try:
            "".join(self.words).encode()
        except UnicodeEncodeError as error:  # JSON can hold it
            raise InputError("Invalid `words`: expected Unicode text. Received: half of a surrogate pair.") from error
        require(len(self.ids) == len(self.words), "words", "distinct words", f"{len(self.words)} words with repeats")
        if self.counts is None:
            return
        require(len(self.counts) == len(self.words), "counts", f"{len(self.words)}, one per word", len(self.counts))
        decreasing = all(first >= second for first, second in zip(self.counts, self.counts[1:], strict=False))
        fits = decreasing and 0 <= self.counts[-1] and self.counts[0] < MAX_COUNT
        require(fits, "counts", "decreasing counts of at least 0", self.counts[:8])

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @property
    def unk(self) -> int | None:
        """The id of `<unk>`, if the vocabulary has it."""
        return self.ids.get(UNK)

    @property
    def eos(self) -> int | None:
        """The id of `<eos>`, if the vocabulary has it."""
        return self.ids.get(EOS)

    @property
    def placeholders(self) -> list[int]:
        """The ids without a written word: `<unk>`, padding and unused ids."""
        prefix = UNUSED.partition("{")[0]
        return [i for i, word in enumerate(self.words) if word in (UNK, PAD) or word.startswith(prefix)]

    @cached_property
    def tokenize(self) -> Callable[[str], list[str]]:
        """The function that cuts text into words and line ends, without the words that are dropped."""
        cut, dropped = tokenizer(self.tokenization), frozenset(self.dropped)
        return (lambda text: [token for token in cut(text) if token not in dropped]) if dropped else cut

    @cached_property
    def _token_ids(self) -> dict[str, int]:
        return self.ids if self.eos is None else self.ids | {"\n": self.eos}

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, `[N]` int32. Line ends become `<eos>`, unknown words `<unk>`.

        Those that the vocabulary has no id for are left out. An `<eos>` before a line end counts once with it.

        >>> Vocabulary(("the", "<eos>", "sea", "<unk>"), (9, 4, 4, 0), "words").encode("the sea!\\n")
        array([0, 2, 3, 1], dtype=int32)
        >>> Vocabulary(("", "the", "sea"), None, "text_vectorization").encode("The open sea!\\n")
        array([1, 2], dtype=int32)
        """
        tokens = self.tokenize(text)
        if EOS in tokens:
            following = [*tokens[1:], ""]
            tokens = [t for t, after in zip(tokens, following, strict=True) if (t, after) != (EOS, "\n")]
        ids = self.ids_of(tokens)
        return ids[ids >= 0]

    def ids_of(self, tokens: Iterable[str]) -> np.ndarray:
        """Returns the ids of tokens, `[N]` int32, as `encode` does; -1 for those that it leaves out."""
        ids, unk = self._token_ids, -1 if self.unk is None else self.unk
        return np.array([ids.get(token, -1 if token == "\n" else unk) for token in tokens], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Joins words with spaces, except around punctuation marks. `<eos>` becomes a line end."""
        text = " ".join("\n" if self.words[i] == EOS else self.words[i] for i in ids)
        text = text.replace(" \n", "\n").replace("\n ", "\n")
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
        """CRC-32 of the words, their counts and how text is cut; unknown counts are taken as 0."""
        counts = (0,) * len(self) if self.counts is None else self.counts
        return f"{zlib.crc32(repr((self.words, counts, self.tokenization, self.dropped)).encode()):08x}"

    @property
    def log_unigram(self) -> np.ndarray:
        """Log-probabilities of the words by their counts, `[V]` float32. A count of 0 is taken as 1.

        Raises:
          InputError: the counts are not known.
        """
        if self.counts is None:
            raise InputError("The counts of this vocabulary are not known; count a text: `jaxlm.prepare` does.")
        return log_unigram(self.counts)

    def save(self, path: PathLike) -> None:
        """Writes the vocabulary as JSON."""
        cutting = self.tokenization
        tokenization = cutting._asdict() if isinstance(cutting, KerasTokenizer) else cutting
        value = {
            "tokenization": tokenization,
            "dropped": self.dropped,
            "words": self.words,
            "counts": self.counts,
        }
        write_json(Path(path), value, FORMAT)

    @classmethod
    def load(cls, path: PathLike) -> "Vocabulary":
        """Reads a file that `save` wrote.

        Raises:
          InputError: the file is missing, of another format, or does not hold a vocabulary.
        """
        value = read_json(Path(path), FORMAT)
        try:
            words, counts, tokenization = value["words"], value["counts"], tokenization_of(value["tokenization"])
            known = counts is not None and any(counts)  # older files say 0 where counts are not known
            return cls(words, counts if known else None, tokenization, value.get("dropped", ()))  # older: no dropped
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"{path} does not hold a vocabulary: {error}") from error


def log_unigram(counts: ArrayLike) -> np.ndarray:
    """Returns log-probabilities, `[V]` float32, by counts `[V]`. A count of 0 is taken as 1."""
    positive = np.maximum(np.asarray(counts, np.float64), 1.0)
    return np.log(positive / positive.sum()).astype(np.float32)


def zipf_divergence(counts: ArrayLike) -> float:
    """Divergence of word frequencies from the log-uniform distribution: sum of p log(p / P(id)), in nats.

    About 0.1 for ordinary text, 0.9 for 1,000 equally frequent words; `counts` is `[V]`, by id.
    """
    log_frequencies = log_unigram(counts).astype(np.float64)
    n = np.arange(1, log_frequencies.size + 1)
    log_uniform = np.log(np.log1p(1.0 / n) / np.log(log_frequencies.size + 1.0))
    return float(np.exp(log_frequencies) @ (log_frequencies - log_uniform))


def select_words(
    tokens: Iterable[str],
    counts: np.ndarray,
    vocab_size: int,
    tokenization: Tokenization,
    listed: Sequence[str] | None = None,
    dropped: tuple[str, ...] = (),
) -> Vocabulary:
    """Keeps the most frequent words, or those of a list. The others count as `<unk>`.

    Args:
      tokens: the tokens of a text, "\\n" for a line end.
      counts: `[types]` occurrences of each.
      vocab_size: maximum number of words, including `<unk>` and `<eos>`.
      tokenization: how the text was cut.
      listed: distinct words to keep, also if they never occur; replaces `vocab_size`.
      dropped: words that were left out of the text.
    """
    total = Counter({UNK: 0, EOS: 0})
    for token, count in zip(tokens, counts.tolist(), strict=True):
        total[EOS if token == "\n" else token] += count

    def rank(word: str) -> tuple[int, str]:
        return -total[word], word

    if listed is None:
        by_count = sorted((word for word, count in total.items() if count and word not in (UNK, EOS)), key=rank)
        kept = by_count[: vocab_size - 2]
    else:
        kept = [word for word in listed if word not in (UNK, EOS)]
    total[UNK] += sum(total.values()) - sum(total[word] for word in {UNK, EOS, *kept})
    order = sorted([UNK, EOS, *kept], key=rank)
    return Vocabulary(tuple(order), tuple(total[word] for word in order), tokenization, dropped)
