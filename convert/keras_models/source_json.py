"""`keras_model.json`: the JSON of a run's source model, checked as untrusted input and rebuilt by `to-keras`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from convert.errors import library_errors
from convert.keras_models.json_config import check_classes, layers_of_json
from convert.keras_models.live_layers import chain, weight_variables
from convert.keras_models.supported_layers import Structure, read_structure
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.files import write_json
from jaxlm.runs.keras_files import KERAS_MODEL_FILE, KERAS_MODEL_FORMAT, read_keras_model


def save(directory: Path, description: dict[str, Any]) -> None:
    """Writes a model's JSON into a run directory."""
    write_json(directory / KERAS_MODEL_FILE, {"model": description}, KERAS_MODEL_FORMAT)


def load(directory: Path, config: ModelConfig) -> dict[str, Any] | None:
    """Reads the JSON of the model that a run came from; None if there is none.

    Args:
      directory: of the run.
      config: of the run's model.

    Raises:
      InputError: the file is damaged, names a class that is not of Keras, or describes another model.
    """
    kept = read_keras_model(directory)
    if kept is None:
        return None
    path, description = directory / KERAS_MODEL_FILE, kept.get("model")
    try:
        with library_errors(path, "loaded"):
            found = read_structure_of(description).config
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    shape, expected = (dataclasses.replace(each, tied=False, dropout_rates=()) for each in (found, config))
    if shape != expected:
        raise InputError(f"{path} describes another model: expected {expected}. Received: {shape}.")
    return description


def read_structure_of(description: Any) -> Structure:
    """Checks a model's JSON, and returns its structure.

    Raises:
      InputError: it is damaged or unsafe, or jaxlm cannot represent the model.
    """
    try:
        check_classes(description)
    except RecursionError as error:
        raise InputError("The config of the Keras model is damaged: it is nested too deeply.") from error
    return read_structure(layers_of_json(description))


def deserialize(description: dict[str, Any]) -> keras.Model:
    """Makes the model of a checked JSON."""
    if "module" in description:
        return keras.saving.deserialize_keras_object(description, safe_mode=True)
    kind = keras.Sequential if description["class_name"] == "Sequential" else keras.Model
    return kind.from_config(description["config"])  # .h5 has no modules, as in Keras 2


def rebuild(description: dict[str, Any], weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Makes the model of a checked JSON, with weights in Keras' order."""
    with library_errors(Path(KERAS_MODEL_FILE), "loaded"):
        model = deserialize(description)
        if not model.built:
            model.build(read_structure_of(description).shape)
        variables = [variable for layer in chain(model) for variable in weight_variables(layer)]
        for variable, array in zip(variables, weights.values(), strict=True):
            variable.assign(array)
        return model
