"""Imports a Keras model's file as a run directory, and reads texts for comparisons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import runs
from convert.comparison import check
from convert.formats import format_of
from convert.keras_ids import KerasIds
from convert.keras_reader import OWN_READING, read_optimizer
from convert.predictor import language_model_predictor
from convert.source import Source, not_kept, read_source
from jaxlm.config import ModelConfig
from jaxlm.corpus import VOCABULARY_FILE
from jaxlm.errors import InputError
from jaxlm.run import CONFIG_FILE
from jaxlm.text import Tokenization, read_chunks
from jaxlm.vocabulary import Vocabulary


def import_run(
    model: Path,
    run: Path,
    vocabulary_file: Path,
    unk: str,
    eos: str,
    tokenization: Tokenization,
    keep_optimizer: bool = False,
) -> Iterator[str]:
    """Makes a run from a Keras model's file, and checks that both predict the same; yields lines for people.

    Args:
      model: `.keras`, `.h5`, `.weights.h5` or a SavedModel directory.
      run: directory to make.
      vocabulary_file: as `runs.read_vocabulary` reads it.
      unk: the word in it that stands for unknown words.
      eos: the word in it that stands for the end of a line.
      tokenization: how text is cut, unless the file says so.
      keep_optimizer: whether to continue with the optimizer state in a `.keras` file.

    Raises:
      InputError: a file is damaged or unsafe, jaxlm cannot represent the model, or they do not fit each other.
    """
    runs.check_new(run)
    vocabulary, keras_ids = runs.read_vocabulary(vocabulary_file, unk=unk, eos=eos, tokenization=tokenization)
    if keep_optimizer and format_of(model) != "keras":
        raise InputError(f"`keep_optimizer` needs a .keras file; others have no optimizer state. Received: {model}.")
    source = read_source(model)
    language_model, config = source.model, source.model.config
    yield str(check(language_model_predictor(language_model), source.predictor))
    yield from _remarks(source, keep_optimizer)
    optimizer = read_optimizer(model, config) if keep_optimizer else None
    runs.write(run, language_model, vocabulary, keras_ids, optimizer, source.description)
    if optimizer:
        yield f"{optimizer.name} continues after {optimizer.steps:,} steps: --learning-rate {optimizer.learning_rate:g}"
    if keras_ids is not None:
        yield "the ids were not sorted by frequency: sorted in the run; to-keras restores the original ids"
    yield f"continue with: jaxlm prepare TEXT --vocabulary {run / VOCABULARY_FILE} --out DATA"
    yield f"               jaxlm train DATA --out {run} {_size_options(config)}".rstrip()


def _remarks(source: Source, keep_optimizer: bool) -> Iterator[str]:
    if OWN_READING in source.predictor.name:
        yield f"compared {OWN_READING}: it shows that the weights were read, not that Keras computes the same"
    if source.predictor.first_id:
        yield "compared without id 0: if Keras masks it, it is an ordinary word in jaxlm"
    if source.assumed:
        yield f"assumed: {'; '.join(source.assumed)}"
    if source.ignored:
        kept = ", but kept in what to-keras writes" if source.description else ""
        yield f"trained without{kept}: {'; '.join(source.ignored)}"
    missing = not_kept(source.compiled, keep_optimizer=keep_optimizer)
    if source.description is None:
        missing += source.ignored
    if missing:
        yield f"not kept: {'; '.join(missing)}"


def _size_options(config: ModelConfig) -> str:
    """Returns the options that describe a model, as far as there are options."""
    if config.lstms or config.dense or config.dropout_rates or not config.softmax_bias:
        return ""  # without any, `jaxlm train` takes the model of the run
    sizes = f"--embedding-size {config.embedding_size} --hidden-size {config.hidden_size}"
    sizes += f" --num-layers {config.num_layers}" if config.num_layers > 1 else ""
    sizes += f" --projection-size {config.projection_size}" if config.projection_size else ""
    sizes += " --tied" if config.tied else ""
    return sizes + (f" --dropout {config.dropout}" if config.dropout else "")


def encode_text(text: Path, vocabulary_file: Path | None, *models: Path) -> np.ndarray:
    """Returns the ids of a text, `[N]` int32, as the compared models expect them.

    Args:
      text: plain, .gz or .xz.
      vocabulary_file: None takes that of the run among the models.
      models: those compared.

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
        raise InputError(f"{text} has fewer than 2 words.")
    keras_ids = KerasIds.load(vocabulary_file.parent, len(vocabulary))
    return tokens if keras_ids is None else keras_ids.tokens_for_keras(tokens)
