"""Reads a Keras model's file for import: the model, Keras' predictions, assumptions and ignored settings."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convert.checks.comparison import precomputed
from convert.checks.predictor import Predictor
from convert.files.format_table import format_of, load_predictor
from convert.keras_models.reader import KerasFile, open_file
from convert.weights.optimizer_state import KERAS_OPTIMIZERS, unusual_settings
from convert.weights.table import model_from_keras_arrays
from jaxlm.data.vocabulary import VOCABULARY_FILE
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel
from jaxlm.runs.directory import CONFIG_FILE

KEPT = ("learning_rate", "global_clipnorm", "beta_2")  # by `keep_optimizer`


class Source(NamedTuple):
    """A file that was read."""

    model: LanguageModel
    predictor: Predictor
    description: dict[str, Any] | None  # JSON of the model, for Keras 3 to rebuild it; None if it cannot
    assumed: tuple[str, ...]  # settings that the file lacks
    ignored: tuple[str, ...]  # settings that training ignores
    compiled: dict[str, Any]  # arguments of `compile`, JSON


def read_source(path: Path) -> Source:
    """Reads a model twice: as a `LanguageModel`, and as a Keras model for the comparison.

    Raises:
      InputError: the file is damaged or unsafe, or jaxlm cannot represent the model.
    """
    _check_not_checkpoint(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a Keras model to read.")
    _check_not_run(path)
    name = format_of(path)
    if name == "savedmodel":
        if not (path / "saved_model.pb").is_file():
            raise InputError(f"{path} is not a SavedModel directory: it has no saved_model.pb.")
        from convert.formats import saved_model_weights

        model, assumed, ignored = saved_model_weights.read_model(path)
        return Source(model, load_predictor(path), None, assumed, ignored, {})
    if name not in ("keras", "h5", "weights.h5"):
        raise InputError(f"{path} cannot be imported: expected .keras, .h5, .weights.h5 or a SavedModel directory.")
    predictor = precomputed(load_predictor(path))  # so that only one model is in memory at a time
    with open_file(path) as file:
        model = model_from_keras_arrays(file.arrays(), file.config)
        ignored = file.structure.ignored if file.structure else ()
        description = file.description if file.structure and file.version[:1] == (3,) else None
        return Source(model, predictor, description, tuple(_assumed(file)), ignored, file.compiled)


def _check_not_checkpoint(path: Path) -> None:
    """Raises `InputError` for a TensorFlow checkpoint: its prefix, one of its files, or its directory."""
    prefix = path.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name))
    if path.is_dir() and not (path / "saved_model.pb").exists():
        prefix = next(path.glob("*.index"), prefix).with_suffix("")
    if prefix.with_name(f"{prefix.name}.index").is_file():
        raise InputError(
            f"{path} is a TensorFlow checkpoint of weights, without the model. Build the model in Python, restore it"
            f" with tf.train.Checkpoint(model=model).restore({str(prefix)!r}), or with model.load_weights if"
            " model.save_weights wrote it, and import what model.save('model.keras') writes."
        )


def _check_not_run(path: Path) -> None:
    """Raises `InputError` for a directory that is a run."""
    if (path / CONFIG_FILE).is_file() and (path / VOCABULARY_FILE).is_file():
        raise InputError(
            f"{path} is a run of jaxlm already, not a Keras model: train it with `jaxlm train`, or write it as a Keras"
            " model with `jaxlm-convert to-keras`."
        )


def _assumed(file: KerasFile) -> Iterator[str]:
    if file.structure is not None:
        yield from file.structure.assumed
        return
    activations = "".join(f", Dense({layer.size}) {layer.activation}" for layer in file.config.dense)
    yield f"activations, which a file of weights lacks: LSTM tanh and sigmoid{activations}, the last Dense softmax"
    if () < file.version < (2, 3):
        yield "recurrent_activation sigmoid, although the default of Keras before 2.3 was hard_sigmoid"


def dropped_settings(compiled: Mapping[str, Any], *, keep_optimizer: bool) -> list[str]:
    """Returns the compile settings that a run does not keep: optimizer, losses and metrics."""
    found = []
    optimizer = compiled.get("optimizer")
    if isinstance(optimizer, dict):
        settings = optimizer.get("config")
        settings = settings if isinstance(settings, dict) else {}
        name = str(optimizer.get("class_name"))
        words = [
            f"{setting}={value}"
            for setting, value in unusual_settings(settings, KERAS_OPTIMIZERS.get(name) if keep_optimizer else None)
            if not (keep_optimizer and setting in KEPT and isinstance(value, float))
        ]
        if not keep_optimizer:
            found.append(f"optimizer {name}({', '.join(words)})")
        elif words:
            found.append(f"settings of {name}: {', '.join(words)}")
    elif optimizer:
        found.append(f"optimizer {optimizer}")
    for name in ("loss", "metrics", "weighted_metrics", "loss_weights"):
        if compiled.get(name):
            found.append(f"{name} {_short(compiled[name])}")
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("config") if value.get("class_name") == "function" else value.get("class_name", "?")
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)[:60]
