"""Turns texts into a prepared corpus."""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from jaxlm.config_checks import require_integer
from jaxlm.data.corpus import Corpus, count_ids, load_corpus
from jaxlm.data.text_files import STANDARD_INPUT, list_texts, read_chunks
from jaxlm.data.text_warnings import UNK_MARKERS, shared_file_warnings, text_warnings, unicode_form_warning
from jaxlm.data.tokenization import PieceEncoder, Tokenization, auto_ids, tokenization_of
from jaxlm.data.vocabulary import EOS, UNK, VOCABULARY_FILE, Vocabulary, select_words
from jaxlm.errors import InputError
from jaxlm.files import PathLike, require_new_directory, staged, write_checksums
from jaxlm.token_ids import blocks

HELD_OUT_FRACTION = 0.05
HELD_OUT_MAX = 200_000

logger = logging.getLogger(__name__)


def prepare(
    train: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    valid: PathLike | Sequence[PathLike] | None = None,
    test: PathLike | Sequence[PathLike] | None = None,
    vocab_size: int = 200_000,
    tokenization: Tokenization | Literal["keras_tokenizer"] = "words",
    vocabulary: Vocabulary | Sequence[str] | None = None,
    unk: str | None = None,
    drop: str | Sequence[str] = (),
    progress: bool = True,
) -> Corpus:
    """Turns texts into a vocabulary and token files, a directory that `load_corpus` reads.

    The vocabulary comes from the training text alone. Without `valid` or `test`, the end of the training text
    is held out for it.

    Args:
      train: one or several texts in UTF-8, plain or compressed: files, directories, patterns with `*`, or "-" for the
        standard input.
      out: directory to make; must not exist, or be empty.
      valid: validation texts, named like `train`.
      test: test texts.
      vocab_size: maximum number of words.
      tokenization: "words", "whitespace" for a corpus that is already tokenized (PTB, WikiText), or as Keras cuts
        text, "text_vectorization" or "keras_tokenizer".
      vocabulary: of an existing model; replaces `vocab_size` and `tokenization`. Words and line ends that it has no
        id for are left out. Or a list of the words to keep, in any order, which replaces `vocab_size`.
      unk: word of the texts that stands for unknown words, such as "<UNK>"; by default that of a list, if it has one.
      drop: words of the texts to leave out, such as ["<s>", "</s>"]. The vocabulary keeps them, so that they are
        left out of later texts too.
      progress: whether to show progress bars.

    Returns:
      The corpus.

    Raises:
      InputError: a file cannot be used, `out` exists, or the text is too short to hold out a tail.
    """
    require_integer("vocab_size", vocab_size, 3)
    out = Path(out)
    require_new_directory(out)
    drop = [drop] if isinstance(drop, str) else drop
    texts = _find_texts(train=train, valid=valid, test=test)
    given = vocabulary if isinstance(vocabulary, Vocabulary) else None
    listed = None if isinstance(vocabulary, Vocabulary | None) else vocabulary
    named = [word for word in (unk, *drop) if word]
    unk = _unk_of(listed) if unk is None else unk
    ids = auto_ids()  # of every token, in the order of first occurrence
    tokenization = given.tokenization if given else tokenization_of(tokenization)
    dropped = tuple(dict.fromkeys([*(given.dropped if given else ()), *drop]))
    encoder = PieceEncoder(tokenization, ids.__getitem__, dropped)
    with staged(out) as partial:
        partial.mkdir(parents=True)
        raw = {}
        for name, paths in texts.items():
            if paths or name == "train":
                with closing(_read(paths, f"reading {name}", progress)) as chunks:
                    encoded = _single_line_ends(map(encoder.encode, chunks), ids)
                    raw[name] = _write_raw(encoded, partial / f"{name}.raw")
        for name in ("test", "valid"):
            if name not in raw:
                raw["train"], raw[name] = _hold_out(raw["train"], ids.get("\n"))
        words = [UNK if word == unk else word for word in ids]
        counts = count_ids(raw["train"], len(ids))
        if given:
            found = replace(given, dropped=dropped)
        else:
            listed = None if listed is None else [UNK if word == unk else word for word in listed]
            found = select_words(words, counts, vocab_size, tokenization, listed, dropped)
        _write_tokens(partial, raw, found.ids_of(words))
        found.save(partial / VOCABULARY_FILE)
        for path in partial.glob("*.raw"):
            path.unlink()
        write_checksums(partial)
    missing = [word for word in named if word not in ids.keys() | encoder.found]
    for line in text_warnings(words, counts, found, missing):
        logger.info("training text: %s", line)
    if warning := unicode_form_warning(words, found.ids):  # of all texts
        logger.warning(warning)
    return load_corpus(out)


def _find_texts(**sources: PathLike | Sequence[PathLike] | None) -> dict[str, list[Path]]:
    """Returns the files of each text. Warns about shared files, and says which texts are held out."""
    texts = {name: list_texts(source) for name, source in sources.items()}
    if sum(paths.count(STANDARD_INPUT) for paths in texts.values()) > 1:
        raise InputError("The standard input can be read only once; expected - for one text.")
    for line in shared_file_warnings(texts):
        logger.warning(line)
    for name in ("valid", "test"):
        if not texts[name]:
            logger.info("no `%s` text given: holding out the end of the training text", name)
    return texts


def _unk_of(listed: Sequence[str] | None) -> str | None:
    """Returns the word of a list that stands for unknown words, in place of `<unk>`, if there is one."""
    if listed is None or UNK in listed:
        return None
    unk = next((word for word in UNK_MARKERS if word in listed), None)
    if unk is not None:
        logger.info("%s of the `vocabulary` stands for unknown words", unk)
    return unk


def _read(paths: Sequence[Path], description: str, progress: bool) -> Generator[str]:
    """Reads texts under a progress bar."""
    with tqdm(desc=description, unit=" characters", unit_scale=True, disable=None if progress else True) as bar:
        for chunk in read_chunks(paths):
            yield chunk
            bar.update(len(chunk))


def _single_line_ends(chunks: Iterable[np.ndarray], ids: Mapping[str, int]) -> Iterator[np.ndarray]:
    """Leaves out each `<eos>` before a line end: other toolkits write both, and it is one end."""
    held = np.zeros(0, np.int32)  # an `<eos>` at the end of a chunk
    for chunk in chunks:
        eos, line_end = ids.get(EOS), ids.get("\n")
        if eos is not None:
            chunk = np.concatenate([held, chunk])
            chunk = np.delete(chunk, np.flatnonzero((chunk[:-1] == eos) & (chunk[1:] == line_end)))
            size = chunk.size - int((chunk[-1:] == eos).sum())
            chunk, held = chunk[:size], chunk[size:]
        yield chunk
    yield held


def _write_raw(chunks: Iterable[np.ndarray], path: Path) -> np.ndarray:
    """Writes ids to a file, and maps it into memory."""
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk.tobytes())
    if path.stat().st_size < 3 * 4:
        raise InputError(f"The {path.stem} text has fewer than 3 words; expected text to learn from.")
    return np.memmap(path, np.int32, "r")


def _write_tokens(directory: Path, raw: dict[str, np.ndarray], new_ids: np.ndarray) -> None:
    """Writes the token files, each raw id replaced by its new one, or left out if that is negative."""
    kept = new_ids >= 0
    for name, ids in raw.items():
        size = sum(int(kept[block].sum()) for block in blocks(ids))
        if size < 3:
            raise InputError(
                f"The {name} text has fewer than 3 words of the `vocabulary`; expected text to learn from."
            )
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (size,)}
        with (directory / f"{name}.npy").open("wb") as file:  # not mapped: a full disk would kill the process
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks(ids):
                file.write(new_ids[block[kept[block]]].tobytes())


def _hold_out(tokens: np.ndarray, line_end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts off the tail, after a line end if there is one in the first half of it."""
    size = min(int(tokens.size * HELD_OUT_FRACTION), HELD_OUT_MAX)
    if size < 2:
        raise InputError(f"{tokens.size} words are too few to hold out a tail; give `valid` and `test` texts.")
    cut = tokens.size - size
    ends = np.flatnonzero(tokens[cut : cut + size // 2] == line_end)
    cut += int(ends[0]) + 1 if ends.size else 0
    return tokens[:cut], tokens[cut:]
