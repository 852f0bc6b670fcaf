"""Reads the files of Keras models without executing anything in them: they are checked before Keras sees them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras

from convert.errors import library_errors
from convert.keras_archive import open_archive
from convert.keras_builder import abstract, build, tensor_of
from convert.keras_hdf5 import find_datasets, model_weights, optimizer_variables, read_array
from convert.keras_layers import Structure, check_classes, is_step_model, layers_of_json, read_structure
from convert.keras_model import abstract_predictor
from convert.optimizer import OptimizerState, state_from_keras_arrays
from convert.options import ExportOptions
from convert.predictor import Predictor
from convert.weights import config_from_shapes, model_from_keras_arrays
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


class Container(NamedTuple):
    """What both kinds of files hold."""

    config: Any  # JSON of the model; None in a file of weights alone
    keras_version: Any
    layer_names: list[str]  # in order, if the file has them
    weights: h5py.File


class KerasFile(NamedTuple):
    """A file that was checked but not loaded."""

    structure: Structure | None  # None in a file of weights alone, and for a single-step model
    weights: list[h5py.Dataset]  # in Keras' order
    config: dict[str, Any] | None  # of the model, if Keras 3 wrote it
    optimizer: tuple[dict[str, Any], list[h5py.Dataset]]  # its config and variables; empty if there is none


@contextmanager
def open_file(path: Path) -> Iterator[KerasFile]:
    """Opens and checks a `.keras`, `.h5` or `.weights.h5` file of Keras 2 or 3, without using Keras.

    Raises:
      InputError: the file is missing, damaged or unsafe, or jaxlm cannot represent its model.
    """
    check_file(path)
    open_container = _open_archive if path.suffix == ".keras" else _open_hdf5
    with library_errors(path, "loaded"), open_container(path) as (config, version, layer_names, file):
        check_classes(config)
        structure = None
        if config is not None and not (path.suffix == ".keras" and is_step_model(config)):
            structure = read_structure(layers_of_json(config))
        datasets = find_datasets(path, file)
        weights = model_weights(path, datasets, layer_names)
        compiled = ((config or {}).get("compile_config") or {}).get("optimizer") or {}
        keras_3 = str(version).startswith("3")
        yield KerasFile(structure, weights, config if keras_3 else None, (compiled, optimizer_variables(datasets)))


@contextmanager
def _open_archive(path: Path) -> Iterator[Container]:
    with open_archive(path) as (config, version, file):
        yield Container(config, version, [], file)  # its layers have the names of their classes, numbered


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Container]:
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        config = None if text is None else json.loads(text)
        names = file.get("model_weights", file).attrs.get("layer_names", ())
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        yield Container(config, file.attrs.get("keras_version"), names, file)


def check_file(path: Path) -> None:
    """Checks that a file exists.

    Raises:
      InputError: it does not, or is a directory.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; expected a file.")
    if not path.is_file():
        raise InputError(f"{path} does not exist.")


def read_model(path: Path) -> LanguageModel:
    """Reads the model of a `.keras`, `.h5` or `.weights.h5` file, in the file's ids.

    Raises:
      InputError: as `open_file`, or a weight is not finite.
    """
    with open_file(path) as source:
        config_from_shapes([dataset.shape for dataset in source.weights])  # before anything is read
        dropout = source.structure.dropout if source.structure else 0.0
        return model_from_keras_arrays([read_array(dataset) for dataset in source.weights], dropout)


def read_optimizer(path: Path, config: ModelConfig) -> OptimizerState:
    """Reads the optimizer state of a `.keras` file, in the file's ids.

    Raises:
      InputError: as `open_file`, or the file has no optimizer, or one that jaxlm does not have.
    """
    with open_file(path) as source:
        settings, variables = source.optimizer
        if not settings or not variables:
            raise InputError(f"{path} has no optimizer state; leave `keep_optimizer` out.")
        return state_from_keras_arrays(settings, [read_array(dataset) for dataset in variables], config)


def load_predictor(path: Path) -> Predictor:
    """Returns the `Predictor` of a file, made of Keras' own layers, without a second copy of any weight.

    Keras gets `safe_mode=True`, and only files whose layers jaxlm knows.

    Raises:
      InputError: as `open_file`.
    """
    with open_file(path) as source:
        config = config_from_shapes([dataset.shape for dataset in source.weights])
        structure, description = source.structure, source.config
        weights = [tensor_of(read_array(dataset)) for dataset in source.weights]
    if description is not None:
        with library_errors(path, "loaded"):
            return abstract_predictor(abstract(lambda: _deserialize(description)), weights, path.name)
    options = ExportOptions(structure.logits, structure.last_only) if structure else ExportOptions()
    predictor = abstract_predictor(abstract(lambda: build(config, options)), weights, path.name)
    return predictor._replace(first_id=int(bool(structure and structure.mask_zero)))


def _deserialize(config: dict[str, Any]) -> keras.Model:
    config = config | {"compile_config": None}  # a comparison needs no optimizer
    if "module" in config:
        return keras.saving.deserialize_keras_object(config, safe_mode=True)
    kind = (
        keras.Sequential if config["class_name"] == "Sequential" else keras.Model
    )  # .h5 has no modules, as in Keras 2
    return kind.from_config(config["config"])
