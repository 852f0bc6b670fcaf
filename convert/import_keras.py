"""From a Keras model's file to a run directory, and texts for comparisons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import comparison, export, runs
from convert.keras_reader import read_file, read_optimizer
from jaxlm.corpus import VOCABULARY_FILE
from jaxlm.errors import InputError
from jaxlm.run import CONFIG_FILE
from jaxlm.text import Tokenization, read_chunks
from jaxlm.vocabulary import Vocabulary


def import_run(
    model: Path, run: Path, vocabulary_file: Path, unk: str, eos: str, split: Tokenization, keep_optimizer: bool = False
) -> Iterator[str]:
    """Makes a run of a Keras model's file and proves it; yields lines for people.

    Args:
      model: `.keras`, `.h5`, `.weights.h5` or a SavedModel directory.
      run: directory to make.
      vocabulary_file: as `runs.read_vocabulary` reads it.
      unk: its word for unknown words.
      eos: its word for the end of a line.
      split: how text is cut, where the file does not say.
      keep_optimizer: whether training goes on with the optimizer's state in a `.keras` file.

    Raises:
      InputError: a file is damaged or unsafe, jaxlm cannot represent the model, or they do not fit.
    """
    runs.check_new(run)
    vocabulary, order = runs.read_vocabulary(vocabulary_file, unk=unk, eos=eos, split=split)
    form = export.format_of(model)
    if keep_optimizer and form != "keras":
        raise InputError(
            f"Invalid --keep-optimizer: only a .keras file holds the optimizer's state. Received: {model}."
        )
    if form not in ("keras", "h5", "weights.h5", "savedmodel"):
        raise InputError(f"{model} cannot be imported: expected .keras, .h5, .weights.h5 or a SavedModel directory.")
    if form == "savedmodel":
        from convert import saved_model

        language_model = saved_model.read_weights(model)  # first, since to compare a SavedModel runs its graph
        other = export.subject(model)
    else:
        other = comparison.remembered(export.subject(model))  # one model at a time in memory
        language_model = read_file(model)
    config = language_model.config
    yield str(comparison.prove(comparison.of_language_model(language_model), other))
    if other.first_id:
        yield "compared without id 0: where Keras masks it, it is an ordinary word in jaxlm"
    optimizer = read_optimizer(model, config) if keep_optimizer else None
    runs.write(run, language_model, vocabulary, order, optimizer)
    if optimizer:
        yield f"{optimizer.name} goes on after {optimizer.steps:,} steps: --learning-rate {optimizer.learning_rate:g}"
    if order is not None:
        yield "ids were not sorted by frequency: re-ranked in the run, and put back in what to-keras writes of it"
    sizes = f"--embedding-size {config.embedding_size} --hidden-size {config.hidden_size}"
    sizes += f" --num-layers {config.num_layers}" if config.num_layers > 1 else ""
    sizes += f" --dropout {config.dropout}" if config.dropout else ""
    yield f"go on with: jaxlm prepare TEXT --vocabulary {run / VOCABULARY_FILE} --out DATA"
    yield f"            jaxlm train DATA --out {run} {sizes}"


def encode_text(text: Path, vocabulary_file: Path | None, *models: Path) -> np.ndarray:
    """Returns the ids of a text file, `[N]` int32, as the models that are compared take them.

    Args:
      text: plain, .gz or .xz.
      vocabulary_file: of the words; None takes those of the run among the models.
      models: what is compared.

    Raises:
      InputError: none of the models is a run and no vocabulary is given, or a file cannot be used.
    """
    if vocabulary_file is None:
        found = [path for path in models if (path / CONFIG_FILE).exists()]
        if not found:
            raise InputError("Neither model is a run: give the vocabulary of the text with --vocabulary.")
        vocabulary_file = found[0] / VOCABULARY_FILE
    vocabulary = Vocabulary.load(vocabulary_file)
    tokens = np.concatenate([vocabulary.encode(chunk) for chunk in read_chunks([text])])
    if tokens.size < 2:
        raise InputError(f"{text} holds fewer than 2 words.")
    order_file = vocabulary_file.parent / runs.ORDER_FILE
    return np.load(order_file, allow_pickle=False)[tokens].astype(np.int32) if order_file.exists() else tokens
