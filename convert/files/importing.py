"""Imports a Keras model's file as a run directory, and reads texts for comparisons."""

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from convert.checks.comparison import check
from convert.checks.predictor import language_model_predictor
from convert.files import run_directory
from convert.files.format_table import format_of
from convert.files.source_file import Source, dropped_settings, read_source
from convert.keras_models.reader import WITHOUT_KERAS, read_optimizer
from convert.keras_models.vocabulary_files import read_vocabulary, vocabulary_warnings
from convert.weights.id_order import KerasIds
from jaxlm.data.text_files import read_chunks
from jaxlm.data.tokenization import Tokenization
from jaxlm.data.vocabulary import VOCABULARY_FILE, Vocabulary
from jaxlm.errors import InputError
from jaxlm.runs.directory import CONFIG_FILE


def import_run(
    model: Path,
    run: Path,
    vocabulary_file: Path,
    unk: str | None = None,
    eos: str | None = None,
    tokenization: Tokenization | Literal["keras_tokenizer"] | None = None,
    keep_optimizer: bool = False,
) -> Iterator[str]:
    """Makes a run from a Keras model's file, compares the predictions of both, and yields lines to print.

    Args:
      model: `.keras`, `.h5`, `.weights.h5` or a SavedModel directory.
      run: directory to make.
      vocabulary_file: as in `vocabulary_files.read_vocabulary`.
      unk: its token for unknown words; None takes the usual one.
      eos: its token for the end of a line, likewise.
      tokenization: of the model's texts; None takes that of the file.
      keep_optimizer: whether to continue with the optimizer state in a `.keras` file.

    Raises:
      InputError: a file is damaged or unsafe, jaxlm cannot represent the model, or they do not fit each other.
    """
    run_directory.check_new(run)
    read_words = partial(read_vocabulary, vocabulary_file, unk=unk, eos=eos, tokenization=tokenization)
    read_words()  # raises an error in it before a large model is read
    if keep_optimizer and format_of(model) != "keras":
        raise InputError(f"Invalid `keep_optimizer`: expected a .keras file, which has its state. Received: {model}.")
    source = read_source(model)
    language_model, config = source.model, source.model.config
    vocabulary, keras_ids = read_words(vocab_size=config.vocab_size)
    problem = "The model differs from its file, so no run is written"
    yield str(check(language_model_predictor(language_model), source.predictor, problem))
    yield from _notes(source, keep_optimizer)
    optimizer = read_optimizer(model, config) if keep_optimizer else None
    run_directory.write(run, language_model, vocabulary, keras_ids, optimizer, source.description)
    if optimizer:
        yield f"{optimizer.name} continues after {optimizer.steps:,} steps: --learning-rate {optimizer.learning_rate!r}"
    if keras_ids is not None:
        yield "the ids were not sorted by frequency: the run re-ranks them, and to-keras restores their order"
    yield from vocabulary_warnings(vocabulary)
    options = []
    if optimizer:
        options = ["--optimizer", optimizer.name, "--clip-norm", f"{optimizer.clip_norm!r}"]
        options += ["--beta-2", f"{optimizer.beta_2!r}"] if optimizer.name == "adam" else []
        options += ["--learning-rate", f"{optimizer.learning_rate!r}"]
    yield f"continue with: jaxlm prepare TEXT --vocabulary {shlex.quote(str(run / VOCABULARY_FILE))} --out DATA"
    yield f"               jaxlm train DATA --out {shlex.join([str(run), *options])}"


def _notes(source: Source, keep_optimizer: bool) -> Iterator[str]:
    if WITHOUT_KERAS in source.predictor.name:
        yield f"compared {WITHOUT_KERAS}, since Keras cannot build the model: only the reading of weights is checked"
    if source.predictor.first_id:
        yield "compared without id 0: if Keras masks it, it is an ordinary word in jaxlm"
    if source.assumed:
        yield f"assumed: {'; '.join(source.assumed)}"
    if source.ignored:
        kept = ", but restored by to-keras" if source.description else ""
        yield f"ignored in training{kept}: {'; '.join(source.ignored)}"
    dropped = dropped_settings(source.compiled, keep_optimizer=keep_optimizer)
    if source.description is None:
        dropped += source.ignored
    if dropped:
        yield f"not kept in the run: {'; '.join(dropped)}"


def encode_text(text: Path, vocabulary_file: Path | None, *models: Path) -> np.ndarray:
    """Returns the ids of a text, `[N]` int32, in the ids of the compared models.

    Args:
      text: file, plain or compressed, or "-" for the standard input.
      vocabulary_file: None takes that of the run among the models.
      models: paths of the compared models.

    Raises:
      InputError: no vocabulary is given and none of the models is a run, or a file cannot be used.
    """
    if vocabulary_file is None:
        found = [path for path in models if (path / CONFIG_FILE).exists()]
        if not found:
            raise InputError("Neither model is a run: give the vocabulary of the text with `vocabulary`.")
        vocabulary_file = found[0] / VOCABULARY_FILE
    vocabulary = Vocabulary.load(vocabulary_file)
    tokens = np.concatenate([vocabulary.encode(chunk) for chunk in read_chunks([text])])
    if tokens.size < 2:
        raise InputError(f"{text}: expected at least 2 words of the vocabulary. Received: {tokens.size}.")
    keras_ids = KerasIds.load(vocabulary_file.parent, len(vocabulary))
    return tokens if keras_ids is None else keras_ids.tokens_for_keras(tokens)
