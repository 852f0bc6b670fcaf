"""Token files, and batches as a pure function of the step."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxlm.config import InputError, partial_path, require
from jaxlm.vocabulary import EOS, UNK, Split, Vocabulary, encode_chunks, numbering, read_chunks, select_words

VOCABULARY_FILE = "vocabulary.json"
HELD_OUT_PART = 0.05
HELD_OUT_MAX = 200_000


class Corpus(NamedTuple):
    """A prepared corpus: ids `[N]` int32, memory-mapped, of each part that there is."""

    vocabulary: Vocabulary
    parts: dict[str, np.ndarray]  # "train", "valid", "test"


class Batch(NamedTuple):
    """Words and the words that follow them."""

    inputs: np.ndarray  # [batch_size, sequence_length] int32
    labels: np.ndarray  # [batch_size, sequence_length] int32
    mask: np.ndarray  # [batch_size, sequence_length] bool, False where a place holds no word


def prepare(
    train: Sequence[Path],
    out: Path,
    *,
    valid: Path | None = None,
    test: Path | None = None,
    vocab_size: int = 200_000,
    split: Split = "words",
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Turns texts into a vocabulary and token files, a directory that `load_corpus` reads.

    The vocabulary is built from the training text alone. Where `valid` or `test` is None, a tail of
    the training text is held out for it, and is no part of the training text any more.

    Args:
      train: text files, plain, .gz or .xz, in UTF-8.
      out: directory to make; must not exist.
      valid: validation text.
      test: test text.
      vocab_size: number of words to keep at most.
      split: "words", or "whitespace" for a corpus that is tokenised already (PTB, WikiText).
      vocabulary: of a model that is there already; `vocab_size` and `split` are then those of it.

    Returns:
      The corpus.

    Raises:
      InputError: a file cannot be used, `out` exists, or the text is too short to hold a part out.
    """
    require(vocab_size >= 3, "vocab_size", "at least 3", vocab_size)
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or name another directory with --out.")
    texts = {"train": list(train)} | {name: [path] for name, path in (("valid", valid), ("test", test)) if path}
    split = vocabulary.split if vocabulary else split
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        numbers = numbering()
        raw = {}
        for name, paths in texts.items():
            blocks = encode_chunks(_read(paths, f"reading {name}"), split, numbers.__getitem__)
            raw[name] = _write_raw(blocks, partial / f"{name}.raw")
        for name in ("test", "valid"):
            if name not in raw:
                raw["train"], raw[name] = _hold_out(raw["train"], numbers.get("\n"))
        if vocabulary is None:
            counts = sum(np.bincount(block, minlength=len(numbers)) for block in _blocks(raw["train"]))
            vocabulary = select_words(numbers, np.asarray(counts), vocab_size, split)
        new_id = vocabulary.ids_of(numbers)
        for name, ids in raw.items():
            tokens = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", np.int32, ids.shape)
            for target, block in zip(_blocks(tokens), _blocks(ids), strict=True):
                target[:] = new_id[block]
            tokens.flush()
        vocabulary.save(partial / VOCABULARY_FILE)
        for path in partial.glob("*.raw"):
            path.unlink()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return load_corpus(out)


def _read(paths: Sequence[Path], description: str) -> Iterator[str]:
    """Reads texts under a progress bar."""
    with tqdm(desc=description, unit=" characters", unit_scale=True) as progress:
        for chunk in read_chunks(paths):
            yield chunk
            progress.update(len(chunk))


def _write_raw(blocks: Iterable[np.ndarray], path: Path) -> np.ndarray:
    """Writes ids as they come, and maps the file."""
    with path.open("wb") as file:
        for block in blocks:
            file.write(block.tobytes())
    if path.stat().st_size < 3 * 4:
        raise InputError(f"The {path.stem} text holds fewer than 3 words; expected text to learn from.")
    return np.memmap(path, np.int32, "r")


def _hold_out(tokens: np.ndarray, line_end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a tail off, behind a line end where there is one within the tail's first half."""
    size = min(int(tokens.size * HELD_OUT_PART), HELD_OUT_MAX)
    if size < 2:
        raise InputError(f"{tokens.size} words are too few to hold a part out; give --valid and --test.")
    cut = tokens.size - size
    ends = np.flatnonzero(tokens[cut : cut + size // 2] == line_end)
    cut += int(ends[0]) + 1 if ends.size else 0
    return tokens[:cut], tokens[cut:]


def _blocks(tokens: np.ndarray, size: int = 1 << 22) -> Iterator[np.ndarray]:
    return (tokens[start : start + size] for start in range(0, tokens.size, size))


def load_corpus(directory: Path) -> Corpus:
    """Opens what `prepare` wrote.

    Raises:
      InputError: a file is missing or damaged, or ids do not fit the vocabulary.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; expected one that `jaxlm prepare` made.")
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    return Corpus(
        vocabulary, {name: load_tokens(directory / f"{name}.npy", vocabulary) for name in ("train", "valid", "test")}
    )


def load_tokens(path: Path, vocabulary: Vocabulary) -> np.ndarray:
    """Maps a token file, `[N]` int32, and checks that its ids fit the vocabulary.

    Raises:
      InputError: the file is missing or damaged, or holds anything else.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with `jaxlm prepare`.") from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged, make it anew with `jaxlm prepare`: {error}") from error
    if tokens.ndim != 1 or tokens.dtype != np.int32 or tokens.size < 2:
        raise InputError(f"{path}: expected int32 ids [N]. Received: {tokens.dtype} {tokens.shape}.")
    low = min(int(block.min()) for block in _blocks(tokens))
    high = max(int(block.max()) for block in _blocks(tokens))
    if low < 0 or high >= len(vocabulary):
        raise InputError(f"{path}: expected ids in [0, {len(vocabulary)}), the vocabulary. Received: {low} to {high}.")
    return tokens


def oov_rate(tokens: np.ndarray, vocabulary: Vocabulary) -> float:
    """Returns the part of the words that are `<unk>`."""
    unk = vocabulary.ids[UNK]
    return sum(int((block == unk).sum()) for block in _blocks(tokens)) / tokens.size


def unigram_loss(tokens: np.ndarray, vocabulary: Vocabulary) -> float:
    """Returns the loss in nats per word of the model that knows the words' frequencies alone."""
    log_unigram = vocabulary.log_unigram.astype(np.float64)
    return -sum(float(log_unigram[block].sum()) for block in _blocks(tokens[1:])) / (tokens.size - 1)


def batches_per_epoch(num_tokens: int, batch_size: int, sequence_length: int) -> int:
    """Returns how many whole batches one pass over the text has.

    Raises:
      InputError: the text is too short for one batch.
    """
    batches = (num_tokens - 1) // batch_size // sequence_length
    if not batches:
        raise InputError(
            f"{num_tokens} words are too few for a batch of {batch_size} streams of {sequence_length} words;"
            " take a smaller --batch-size or --sequence-length."
        )
    return batches


def train_batch(tokens: np.ndarray, step: int, batch_size: int, sequence_length: int) -> Batch:
    """Returns the batch of a step, from 0: the text cut into contiguous streams, read side by side.

    Row b of batch n + 1 goes on where row b of batch n ended; each epoch begins anew.
    """
    place = step % batches_per_epoch(tokens.size, batch_size, sequence_length) * sequence_length
    starts = np.arange(batch_size) * ((tokens.size - 1) // batch_size) + place
    words = tokens[starts[:, None] + np.arange(sequence_length + 1)]
    return Batch(words[:, :-1], words[:, 1:], np.ones((batch_size, sequence_length), bool))


def evaluation_batches(
    tokens: np.ndarray, batch_size: int, sequence_length: int, max_tokens: int = 0
) -> Iterator[Batch]:
    """Yields batches in which each word but the first is a label exactly once.

    Args:
      tokens: `[N]` ids.
      batch_size: number of contiguous streams.
      sequence_length: time steps of a batch.
      max_tokens: at most so many labels, rounded up to whole rows: the beginnings of the streams,
        which lie evenly over the text; 0 is all.
    """
    labels = tokens.size - 1
    stream = -(-labels // batch_size)
    length = min(stream, -(-max_tokens // batch_size)) if max_tokens else stream
    for start in range(0, length, sequence_length):
        place = start + np.arange(sequence_length)
        index = np.arange(batch_size)[:, None] * stream + place
        mask = (place < length)[None, :] & (index < labels)
        index = np.minimum(index, labels - 1)
        yield Batch(tokens[index], tokens[index + 1], mask)


def describe(corpus: Corpus) -> str:
    """Returns a few lines on a corpus for people: sizes and rates of unknown words."""
    vocabulary = corpus.vocabulary
    lines = [f"vocabulary: {len(vocabulary):,} words ({EOS} has id {vocabulary.ids[EOS]}, {UNK} {vocabulary.ids[UNK]})"]
    for name, tokens in corpus.parts.items():
        lines.append(f"{name}: {tokens.size:,} words, {oov_rate(tokens, vocabulary):.2%} unknown")
    return "\n".join(lines)
