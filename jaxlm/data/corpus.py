"""A prepared corpus: a vocabulary, and the ids of the training, validation and test text."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.data.vocabulary import VOCABULARY_FILE, Vocabulary, log_unigram
from jaxlm.errors import InputError
from jaxlm.files import CHECKSUMS_FILE, PathLike, read_array, verify_checksums
from jaxlm.token_ids import blocks, id_range


class Corpus(NamedTuple):
    """A prepared corpus. The ids are memory-mapped."""

    vocabulary: Vocabulary
    train: np.ndarray  # [N] int32
    valid: np.ndarray  # [N] int32
    test: np.ndarray  # [N] int32

    @property
    def counts(self) -> np.ndarray:
        """Counts `[V]` int64 of the words: the vocabulary's, or where they are unknown, the training text's."""
        if self.vocabulary.counts is not None:
            return np.array(self.vocabulary.counts, np.int64)
        return count_ids(self.train, len(self.vocabulary))

    @property
    def log_unigram(self) -> np.ndarray:
        """Log-probabilities of the words by their counts, `[V]` float32. A count of 0 is taken as 1."""
        return log_unigram(self.counts)


def count_ids(ids: np.ndarray, num_ids: int) -> np.ndarray:
    """Returns the occurrences `[num_ids]` of each id."""
    counts = np.zeros(num_ids, np.int64)
    for block in blocks(ids):
        counts += np.bincount(block, minlength=num_ids)
    return counts


def load_corpus(directory: PathLike) -> Corpus:
    """Opens a directory that `prepare` wrote.

    Raises:
      InputError: a file is missing, damaged or of another format, or ids do not fit the vocabulary.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; expected one made by `jaxlm prepare`.")
    if not (directory / CHECKSUMS_FILE).exists():
        raise InputError(f"{directory} has no {CHECKSUMS_FILE}; expected a directory made by `jaxlm prepare`.")
    verify_checksums(directory)
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    return Corpus(vocabulary, *(load_tokens(directory / f"{name}.npy", vocabulary) for name in Corpus._fields[1:]))


def load_tokens(path: Path, vocabulary: Vocabulary) -> np.ndarray:
    """Maps a token file, `[N]` int32, and checks that its ids fit the vocabulary.

    Raises:
      InputError: the file is missing or damaged, or holds anything else.
    """
    try:
        tokens = read_array(path, "r")
    except InputError as error:
        raise InputError(f"{error} Make it with `jaxlm prepare`.") from error
    if tokens.ndim != 1 or tokens.dtype != np.int32 or tokens.size < 2:
        raise InputError(f"{path}: expected int32 ids [N]. Received: {tokens.dtype} {tokens.shape}.")
    low, high = id_range(tokens)
    if low < 0 or high >= len(vocabulary):
        raise InputError(f"{path}: expected ids in [0, {len(vocabulary)}), the vocabulary. Received: {low} to {high}.")
    return tokens


def fingerprint(tokens: np.ndarray) -> str:
    """Returns the size of a text, and a checksum of samples spread over it, to detect changes."""
    samples, length = 64, 4096
    starts = np.linspace(0, max(0, tokens.size - length), samples).astype(int)
    checksum = 0
    for start in np.unique(starts):
        checksum = zlib.crc32(tokens[start : start + length].astype(np.int32).tobytes(), checksum)
    return f"{tokens.size:,} words, {checksum:08x}"


def fingerprints(corpus: Corpus) -> dict[str, str]:
    """Returns fingerprints of the vocabulary and the texts of a run, by name, to detect changes."""
    texts = {name: fingerprint(getattr(corpus, name)) for name in ("train", "valid")}
    return texts | {VOCABULARY_FILE: corpus.vocabulary.checksum}


def oov_rate(tokens: np.ndarray, vocabulary: Vocabulary) -> float:
    """Returns the fraction of words that are `<unk>`."""
    if vocabulary.unk is None:
        return 0.0
    return sum(int((block == vocabulary.unk).sum()) for block in blocks(tokens)) / tokens.size


def unigram_loss(tokens: np.ndarray, counts: np.ndarray) -> float:
    """Returns the loss of ids `[N]`, in nats per word, under the unigram model of word counts `[V]`."""
    log_probabilities = log_unigram(counts).astype(np.float64)
    return -sum(float(log_probabilities[block].sum()) for block in blocks(tokens[1:])) / (tokens.size - 1)
