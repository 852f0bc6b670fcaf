"""Run directories. A run is read in the ids of the Keras model it came from."""

import gc
from pathlib import Path
from typing import Any

import numpy as np

from convert.keras_models import source_json
from convert.weights.id_order import KerasIds
from convert.weights.optimizer_state import OptimizerState, from_train_state, to_train_state
from convert.weights.run_model import RunModel
from jaxlm.config import ScheduleConfig, TrainConfig
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.files import require_new_directory, staged
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import split_params
from jaxlm.parallel.mesh import on_host
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import RunConfig, create_run, load_model
from jaxlm.runs.progress import Progress
from jaxlm.runs.restoring import restore_optimizer
from jaxlm.training.optimizer import initial_opt_state


def load(directory: Path, *, keep_optimizer: bool = False) -> RunModel:
    """Reads a run, with its optimizer state if `keep_optimizer`.

    Raises:
      InputError: the directory is not a run, has no checkpoint or no optimizer state, or is damaged.
    """
    with on_host():  # a model may be too large for an accelerator
        model, vocabulary, config = load_model(directory)
        optimizer = _load_optimizer(directory, config) if keep_optimizer else None
    description = source_json.load(directory, config.model)
    keras_ids = KerasIds.load(directory, len(vocabulary))
    if keras_ids is None:
        return RunModel(model, vocabulary.words, vocabulary.tokenization, optimizer, vocabulary.dropped, description)
    model, optimizer = keras_ids.model_for_keras(model, optimizer)
    gc.collect()  # Flax modules are reference cycles
    words = keras_ids.words_for_keras(vocabulary.words)
    return RunModel(model, words, vocabulary.tokenization, optimizer, vocabulary.dropped, description)


def _load_optimizer(directory: Path, config: RunConfig) -> OptimizerState:
    train = config.train
    if train is not None and config.schedule is not None:
        _check_settings(directory, train)
        checkpoints = Checkpoints(directory)
        step = checkpoints.best_step()
        opt_state = restore_optimizer(checkpoints, step, config.model, train)
        if opt_state is not None or train.optimizer == "sgd":  # which has no arrays
            state = from_train_state(opt_state or {}, train, config.schedule.learning_rate, step)
            return state if config.model.softmax_bias else _without_biases(state)
    raise InputError(f"{directory} has no optimizer state; leave out `keep_optimizer`.")


def _check_settings(directory: Path, train: TrainConfig) -> None:
    """Raises `InputError` if an `OptimizerState` lacks one of a run's settings."""
    if train.has_averages:
        raise InputError(
            f"{directory} has settings for averaged weights, and its optimizer state is that of the weights"
            " before averaging; leave out `keep_optimizer`."
        )
    for name in ("weight_decay", "clip_each"):
        if getattr(train, name):
            raise InputError(
                f"{directory} was trained with `{name}`, which the exported optimizer would not have; leave out"
                " `keep_optimizer`."
            )


def _without_biases(state: OptimizerState) -> OptimizerState:
    """Returns a state with zero moments of the softmax biases, which the Keras model does not have."""
    slots = {
        slot: {name: np.zeros_like(array) if name == "biases" else array for name, array in arrays.items()}
        for slot, arrays in state.slots.items()
    }
    return state._replace(slots=slots)


def write(
    directory: Path,
    model: LanguageModel,
    vocabulary: Vocabulary,
    keras_ids: KerasIds | None = None,
    optimizer: OptimizerState | None = None,
    description: dict[str, Any] | None = None,
) -> None:
    """Writes a run after 0 steps, which `jaxlm train` continues with any training settings.

    Args:
      directory: to make.
      model: in the ids of the Keras model.
      vocabulary: by decreasing counts.
      keras_ids: the Keras id of each id of the vocabulary; None if they are the same.
      optimizer: in the ids of the Keras model; None to start with a fresh one.
      description: JSON of the Keras model, which `to-keras` rebuilds.

    Raises:
      InputError: the directory exists, or the sizes differ.
    """
    check_new(directory)
    if len(vocabulary) != model.config.vocab_size:
        raise InputError(
            f"The vocabulary does not fit the model: it has {len(vocabulary)} words, the model"
            f" {model.config.vocab_size}."
        )
    with staged(directory) as partial:
        partial.mkdir()
        if keras_ids is not None:
            keras_ids.save(partial)
            model, optimizer = keras_ids.model_for_run(model, optimizer)
        if description is not None:
            source_json.save(partial, description)
        _, tables, dense = split_params(model)
        saved, config = {"tables": tables, "dense": dense}, RunConfig(model.config)
        if optimizer is not None:
            train_config = TrainConfig(optimizer=optimizer.name, clip_norm=optimizer.clip_norm, beta_2=optimizer.beta_2)
            saved["opt_state"] = to_train_state(optimizer, initial_opt_state(tables, dense, train_config))
            config = RunConfig(model.config, train_config, ScheduleConfig(learning_rate=optimizer.learning_rate))
        create_run(partial, config, vocabulary)
        checkpoints = Checkpoints(partial)
        checkpoints.save(0, saved, Progress(0.0))
        checkpoints.wait()  # before the directory is renamed


def check_new(directory: Path) -> None:
    """Checks that a run can be made at a path.

    Raises:
      InputError: the directory exists and is not empty, or its parent does not exist.
    """
    require_new_directory(directory)
    if not directory.resolve().parent.is_dir():
        raise InputError(f"{directory} cannot be made: the directory {directory.parent} does not exist.")
