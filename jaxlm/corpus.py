"""Texts to a prepared corpus: a vocabulary, and the ids of the training, validation and test text."""

import os
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxlm.errors import InputError, require
from jaxlm.files import read_array, staged, verify_checksums, write_checksums
from jaxlm.text import PieceEncoder, Tokenization, auto_ids, read_chunks
from jaxlm.token_ids import blocks, id_range
from jaxlm.vocabulary import EOS, UNK, Vocabulary, select_words

VOCABULARY_FILE = "vocabulary.json"
HELD_OUT_FRACTION = 0.05
HELD_OUT_MAX = 200_000

PathLike = str | os.PathLike[str]


class Corpus(NamedTuple):
    """A prepared corpus. The ids are memory-mapped."""

    vocabulary: Vocabulary
    train: np.ndarray  # [N] int32
    valid: np.ndarray  # [N] int32
    test: np.ndarray  # [N] int32


def prepare(
    train: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    valid: PathLike | None = None,
    test: PathLike | None = None,
    vocab_size: int = 200_000,
    tokenization: Tokenization = "words",
    vocabulary: Vocabulary | None = None,
    progress: bool = True,
) -> Corpus:
    """Turns texts into a vocabulary and token files, a directory that `load_corpus` reads.

    The vocabulary comes from the training text alone. Without `valid` or `test`, the end of the training text
    is held out for it.

    Args:
      train: text files, plain, .gz or .xz, in UTF-8.
      out: directory to make; must not exist.
      valid: validation text.
      test: test text.
      vocab_size: maximum number of words.
      tokenization: "words", or "whitespace" for a corpus that is already tokenized (PTB, WikiText).
      vocabulary: of an existing model; replaces `vocab_size` and `tokenization`.
      progress: whether to show progress bars.

    Returns:
      The corpus.

    Raises:
      InputError: a file cannot be used, `out` exists, or the text is too short to hold out a tail.
    """
    require(vocab_size >= 3, "vocab_size", "at least 3", vocab_size)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} already exists; remove it, or choose another `out`.")
    texts = {"train": [train] if isinstance(train, str | os.PathLike) else list(train)}
    texts |= {name: [path] for name, path in (("valid", valid), ("test", test)) if path}
    ids = auto_ids()  # of every token, in the order of first occurrence
    encoder = PieceEncoder(vocabulary.tokenization if vocabulary else tokenization, ids.__getitem__)
    with staged(out) as partial:
        partial.mkdir(parents=True)
        raw = {}
        for name, paths in texts.items():
            with closing(_read([Path(path) for path in paths], f"reading {name}", progress)) as chunks:
                raw[name] = _write_raw(map(encoder.encode, chunks), partial / f"{name}.raw")
        for name in ("test", "valid"):
            if name not in raw:
                raw["train"], raw[name] = _hold_out(raw["train"], ids.get("\n"))
        if vocabulary is None:
            counts = sum(np.bincount(block, minlength=len(ids)) for block in blocks(raw["train"]))
            vocabulary = select_words(ids, np.asarray(counts), vocab_size, tokenization)
        _write_tokens(partial, raw, vocabulary.ids_of(ids))
        vocabulary.save(partial / VOCABULARY_FILE)
        for path in partial.glob("*.raw"):
            path.unlink()
        write_checksums(partial)
    return load_corpus(out)


def _read(paths: Sequence[Path], description: str, progress: bool) -> Generator[str]:
    """Reads texts under a progress bar."""
    with tqdm(desc=description, unit=" characters", unit_scale=True, disable=not progress) as bar:
        for chunk in read_chunks(paths):
            yield chunk
            bar.update(len(chunk))


def _write_raw(chunks: Iterable[np.ndarray], path: Path) -> np.ndarray:
    """Writes ids as they come, and maps the file."""
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk.tobytes())
    if path.stat().st_size < 3 * 4:
        raise InputError(f"The {path.stem} text has fewer than 3 words; expected text to learn from.")
    return np.memmap(path, np.int32, "r")


def _write_tokens(directory: Path, raw: dict[str, np.ndarray], new_ids: np.ndarray) -> None:
    """Writes the token files, each raw id replaced by its new one."""
    for name, ids in raw.items():
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": ids.shape}
        with (directory / f"{name}.npy").open("wb") as file:  # not mapped: a full disk would kill the process
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks(ids):
                file.write(new_ids[block].tobytes())


def _hold_out(tokens: np.ndarray, line_end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts off the tail, after a line end if there is one in the first half of it."""
    size = min(int(tokens.size * HELD_OUT_FRACTION), HELD_OUT_MAX)
    if size < 2:
        raise InputError(f"{tokens.size} words are too few to hold out a tail; give `valid` and `test` texts.")
    cut = tokens.size - size
    ends = np.flatnonzero(tokens[cut : cut + size // 2] == line_end)
    cut += int(ends[0]) + 1 if ends.size else 0
    return tokens[:cut], tokens[cut:]


def load_corpus(directory: PathLike) -> Corpus:
    """Opens what `prepare` wrote.

    Raises:
      InputError: a file is missing, damaged or of another format, or ids do not fit the vocabulary.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; expected one made by `jaxlm prepare`.")
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


def fingerprint(tokens: np.ndarray, samples: int = 64, length: int = 4096) -> str:
    """Returns the size of a text, and a checksum of samples spread over it, to tell whether it was changed."""
    starts = np.linspace(0, max(0, tokens.size - length), samples).astype(int)
    checksum = 0
    for start in np.unique(starts):
        checksum = zlib.crc32(tokens[start : start + length].astype(np.int32).tobytes(), checksum)
    return f"{tokens.size:,} words, {checksum:08x}"


def fingerprints(corpus: Corpus) -> dict[str, str]:
    """Returns what tells whether the vocabulary or a text of a run was changed, by name."""
    texts = {name: fingerprint(getattr(corpus, name)) for name in ("train", "valid")}
    return texts | {VOCABULARY_FILE: corpus.vocabulary.checksum}


def oov_rate(tokens: np.ndarray, vocabulary: Vocabulary) -> float:
    """Returns the fraction of words that are `<unk>`."""
    unk = vocabulary.ids[UNK]
    return sum(int((block == unk).sum()) for block in blocks(tokens)) / tokens.size


def unigram_loss(tokens: np.ndarray, vocabulary: Vocabulary) -> float:
    """Returns the loss in nats per word of the unigram model, which knows only the word frequencies."""
    log_unigram = vocabulary.log_unigram.astype(np.float64)
    return -sum(float(log_unigram[block].sum()) for block in blocks(tokens[1:])) / (tokens.size - 1)


def describe(corpus: Corpus) -> str:
    """Returns a few lines about a corpus for people: sizes, and rates of unknown words."""
    vocabulary = corpus.vocabulary
    lines = [f"vocabulary: {len(vocabulary):,} words ({EOS} has id {vocabulary.ids[EOS]}, {UNK} {vocabulary.ids[UNK]})"]
    for name, tokens in zip(Corpus._fields[1:], corpus[1:], strict=True):
        lines.append(f"{name}: {tokens.size:,} words, {oov_rate(tokens, vocabulary):.2%} unknown")
    return "\n".join(lines)
