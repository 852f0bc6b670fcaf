"""Run directories as the other end of a conversion: read in the user's own ids, written from weights."""

import gc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from convert.optimizer import OptimizerState, from_train_state, reorder, to_train_state
from convert.weights import reorder_classes
from jaxlm.checkpoint import Checkpoints, Progress
from jaxlm.config import ScheduleConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.files import read_json, staged
from jaxlm.model import LanguageModel, RowParam
from jaxlm.run import RunConfig, create_run, load_model
from jaxlm.text import Tokenization
from jaxlm.train_state import initial_opt_state
from jaxlm.vocabulary import EOS, UNK, Vocabulary

ORDER_FILE = "keras_ids.npy"  # [V] int64: the id in Keras of each of the run's ids, where they differ


class Run(NamedTuple):
    """A run's best model and its words, in the ids of the Keras model that it came from, if any."""

    model: LanguageModel
    words: tuple[str, ...]
    split: Tokenization
    optimizer: OptimizerState | None = None  # where it was asked for


def load(directory: Path, *, keep_optimizer: bool = False) -> Run:
    """Reads a run, and the state of its optimizer where that is asked for.

    Raises:
      InputError: it is no run, has no checkpoint, is damaged, or its optimizer has no state.
    """
    model, vocabulary, config = load_model(directory)
    optimizer = _load_optimizer(directory, config) if keep_optimizer else None
    if not (directory / ORDER_FILE).exists():
        return Run(model, vocabulary.words, vocabulary.tokenization, optimizer)
    try:
        order = np.load(directory / ORDER_FILE, allow_pickle=False)
        if not np.array_equal(np.sort(order), np.arange(len(vocabulary))):
            raise ValueError(f"not the numbers from 0 to {len(vocabulary) - 1}")
    except (ValueError, EOFError, TypeError) as error:
        raise InputError(f"{directory / ORDER_FILE} is damaged: {error}") from error
    index = np.argsort(order)  # the run's id of each Keras id
    optimizer = None if optimizer is None else reorder(optimizer, index)
    model = reorder_classes(model, index)
    gc.collect()  # Flax modules are cycles
    return Run(model, tuple(vocabulary.words[i] for i in index), vocabulary.tokenization, optimizer)


def _load_optimizer(directory: Path, config: RunConfig) -> OptimizerState:
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.best_step()
    opt_state = None
    if config.train is not None and config.schedule is not None:
        opt_state = checkpoints.restore_optimizer(step, config.model, config.train)
    if opt_state is None or config.train is None or config.schedule is None:
        raise InputError(f"{directory} has no optimizer state to keep; leave out `keep_optimizer`.")
    return from_train_state(opt_state, config.train, config.schedule.learning_rate, step)


def write(
    directory: Path,
    model: LanguageModel,
    vocabulary: Vocabulary,
    order: np.ndarray | None,
    optimizer: OptimizerState | None = None,
) -> None:
    """Writes a run of no steps, which `jaxlm train` goes on with by any settings of training.

    Args:
      directory: to make.
      model: with the ids of the Keras model.
      vocabulary: by decreasing counts.
      order: the id in Keras of each id of the vocabulary, `[V]`; None where they are the same.
      optimizer: its state with the ids of the Keras model; None begins with a fresh one.

    Raises:
      InputError: the directory exists, or the sizes differ.
    """
    check_new(directory)
    if len(vocabulary) != model.config.vocab_size:
        raise InputError(
            f"The vocabulary has {len(vocabulary)} words, and the model {model.config.vocab_size}; expected as many."
        )
    with staged(directory) as partial:
        partial.mkdir()
        if order is not None:
            model = reorder_classes(model, order)
            optimizer = None if optimizer is None else reorder(optimizer, order)
            np.save(partial / ORDER_FILE, order)
        graphdef, *params = nnx.split(model, RowParam, nnx.Param)
        tables, dense = map(nnx.to_pure_dict, params)
        saved, config = {"tables": tables, "dense": dense}, RunConfig(model.config)
        if optimizer is not None:
            train_config = TrainConfig(optimizer=optimizer.name, clip_norm=optimizer.clip_norm)
            opt_state = to_train_state(optimizer, initial_opt_state(tables, dense, train_config))
            saved["opt_state"] = opt_state
            config = RunConfig(model.config, train_config, ScheduleConfig(learning_rate=optimizer.learning_rate))
        create_run(partial, config, vocabulary)
        Checkpoints(partial).save(0, saved, Progress(0.0, None))


def check_new(directory: Path) -> None:
    """Raises where a run cannot be made there.

    Raises:
      InputError: the directory exists and is not empty, or its parent does not exist.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists already; name another directory for the run.")
    if not directory.resolve().parent.is_dir():
        raise InputError(f"Invalid output {directory}: the directory {directory.parent} does not exist.")


def frequency_order(counts: Sequence[int]) -> np.ndarray | None:
    """Returns the ids by decreasing count, `[V]` int64, ties by id; None where they are so already."""
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    return None if np.array_equal(order, np.arange(order.size)) else order


def read_vocabulary(
    path: Path, *, unk: str = UNK, eos: str = EOS, split: Tokenization = "words"
) -> tuple[Vocabulary, np.ndarray | None]:
    """Reads the words of a Keras model, in the order of its ids.

    Args:
      path: `.json` with "words" (and "counts", "split"), such as a run's vocabulary.json; or text, a
        word on each line, or a word, a tab and its count.
      unk: the word in it that stands for unknown words.
      eos: the word in it that stands for the end of a line.
      split: how text is cut, where the file does not say.

    Returns:
      The vocabulary by decreasing counts, and the id in the file of each word of it, `[V]`, or None
      where those are the same. Without counts the ids are taken to fall by frequency.

    Raises:
      InputError: the file is not such a file, words repeat, or `unk` or `eos` is not in it.
    """
    words, counts, split = _read_words(path, split)
    names = {unk: UNK, eos: EOS}
    for option, word in (("--unk", unk), ("--eos", eos)):
        if word not in words:
            raise InputError(
                f"{path} has no word {word!r}; name the one that stands for {names[word]} in it, with {option}."
            )
    repeated, times = Counter(words).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: the word {repeated!r} comes {times} times.")
    words = [names.get(word, word) for word in words]
    order = frequency_order(counts)
    if order is not None:
        words, counts = [words[i] for i in order], [counts[i] for i in order]
    return Vocabulary(tuple(words), tuple(counts), split), order


def _read_words(path: Path, split: Tokenization) -> tuple[list[str], list[int], Tokenization]:
    if path.suffix == ".json":
        value = read_json(path)
        words: list[str] = value.get("words") or []
        counts: list[int] = value.get("counts") or [0] * len(words)
        split = value.get("split", split)
    else:
        try:
            lines = [line.split("\t") for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
            words = [line[0] for line in lines]
            counts = [int(line[1]) for line in lines] if all(len(line) == 2 for line in lines) else [0] * len(lines)
        except (UnicodeDecodeError, ValueError) as error:
            raise InputError(
                f"{path} does not hold a word, or a word, a tab and a count, on each line: {error}"
            ) from error
    valid = isinstance(words, list) and words and all(isinstance(word, str) for word in words)
    if not valid or len(counts) != len(words) or not all(isinstance(count, int) for count in counts):
        raise InputError(f"{path} does not hold words and their counts.")
    return words, counts, split
