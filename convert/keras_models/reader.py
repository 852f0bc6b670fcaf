"""Reads the files of Keras models. They are checked before Keras loads them, and nothing in them is executed."""

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from convert.checks.predictor import Predictor
from convert.errors import library_errors
from convert.keras_models.archive import open_archive
from convert.keras_models.builder import abstract, build, tensor_of
from convert.keras_models.hdf5 import find_datasets, optimizer_variables, read_array, weights_alone, weights_of_layers
from convert.keras_models.json_config import (
    Layer,
    check_classes,
    function_name,
    is_step_model,
    layers_of_json,
    map_objects,
)
from convert.keras_models.live_layers import abstract_predictor, chain, keras_predictor, weight_variables
from convert.keras_models.source_json import deserialize
from convert.keras_models.supported_layers import Structure, read_structure
from convert.options import ExportOptions
from convert.weights.cudnn import as_lstm_arrays, equal_shapes
from convert.weights.optimizer_state import OptimizerState, state_from_keras_arrays
from convert.weights.table import config_from_shapes, model_from_keras_arrays
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel

WITHOUT_KERAS = "as read by jaxlm"  # after the name of a file, if Keras cannot build its model

# JSON of the model, None in a file of weights alone; version of Keras; names of the layers in order, if known; weights
Container = tuple[Any, Any, list[str], h5py.File]


class KerasFile(NamedTuple):
    """A checked file that is not loaded yet."""

    structure: Structure | None  # None in a file of weights alone, and for a single-step model
    weights: list[h5py.Dataset]  # in Keras' order
    description: dict[str, Any] | None  # JSON of the model
    version: tuple[int, ...]  # of the Keras that wrote it
    compiled: dict[str, Any]  # arguments of `compile`, JSON
    optimizer_variables: list[h5py.Dataset]

    @property
    def config(self) -> ModelConfig:
        """The config of the model."""
        if self.structure is not None:
            return self.structure.config
        return config_from_shapes(equal_shapes([dataset.shape for dataset in self.weights]))

    def arrays(self) -> list[np.ndarray]:
        """Reads the weights, those of a CuDNNLSTM as the equivalent LSTM's."""
        return as_lstm_arrays([read_array(dataset) for dataset in self.weights])


@contextmanager
def open_file(path: Path) -> Iterator[KerasFile]:
    """Opens and checks a `.keras`, `.h5`, `.hdf5` or `.weights.h5` file of Keras 2 or 3, without using Keras.

    Raises:
      InputError: the file is missing, damaged or unsafe, or jaxlm cannot represent its model.
    """
    check_file(path)
    open_container = _open_archive if path.suffix == ".keras" else _open_hdf5
    with library_errors(path, "loaded"), open_container(path) as (config, keras_version, layer_names, file):
        version = tuple(int(number) for number in re.findall(r"\d+", str(keras_version))[:2])
        if not isinstance(config, dict | None):
            raise InputError(f"{path} is damaged: its config is not a JSON object.")
        compiled = (config or {}).get("compile_config")
        compiled = compiled if isinstance(compiled, dict) else {}
        config = None if config is None else {**config, "compile_config": None}  # custom losses are not read
        description = map_objects(config, function_name)
        check_classes(description)
        datasets, structure = find_datasets(path, file), None
        if config is not None and not (path.suffix == ".keras" and is_step_model(config)):
            structure = read_structure(_with_defaults(layers_of_json(config), version))
            weights = weights_of_layers(path, datasets, structure.layers, layer_names)
        else:
            weights = weights_alone(path, datasets, layer_names)
        yield KerasFile(structure, weights, description, version, compiled, optimizer_variables(datasets))


def _with_defaults(layers: list[Layer], version: tuple[int, ...]) -> list[Layer]:
    """Adds the defaults of an LSTM before Keras 2.3."""
    old = {"recurrent_activation": "hard_sigmoid"} if () < version < (2, 3) else {}
    return [layer._replace(config=old | layer.config) if layer.kind == "LSTM" else layer for layer in layers]


@contextmanager
def _open_archive(path: Path) -> Iterator[Container]:
    with open_archive(path) as (config, version, file):
        yield config, version, [], file  # its groups are numbered names of classes


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Container]:
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        config = None if text is None else json.loads(text)
        names = file.get("model_weights", file).attrs.get("layer_names", ())
        names = [_text(name) for name in names]
        yield config, _text(file.attrs.get("keras_version")), names, file


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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
    """Reads the model of a `.keras`, `.h5`, `.hdf5` or `.weights.h5` file, in the file's ids.

    Raises:
      InputError: as `open_file`, or a weight is not finite.
    """
    with open_file(path) as source:
        config = source.config  # before anything is read
        return model_from_keras_arrays(source.arrays(), config)


def read_optimizer(path: Path, config: ModelConfig) -> OptimizerState:
    """Reads the optimizer state of a `.keras` file, in the file's ids.

    Raises:
      InputError: as `open_file`, or the file has no optimizer, or an unsupported one.
    """
    with open_file(path) as source:
        settings, variables = source.compiled.get("optimizer"), source.optimizer_variables
        if not isinstance(settings, dict) or not variables:
            raise InputError(f"{path} has no optimizer state; leave out `keep_optimizer`.")
        return state_from_keras_arrays(settings, [read_array(dataset) for dataset in variables], config)


def load_predictor(path: Path, config: ModelConfig | None = None) -> Predictor:
    """Returns the `Predictor` of a file, made of Keras' own layers, without a second copy of any weight.

    Keras loads only files with supported layers, with `safe_mode=True`. Models of Keras 2 are built by `tf_keras`.
    Without it, and for a file of weights alone, jaxlm builds the model, and the name of the predictor has
    `WITHOUT_KERAS`.

    Args:
      path: of the file.
      config: of the model in a file of weights alone, which lacks activations; None assumes the usual ones.

    Raises:
      InputError: as `open_file`.
    """
    with open_file(path) as source:
        structure, description, arrays = source.structure, source.description, source.arrays()
        if structure is not None or config is None:
            config = source.config
    if description is not None and source.version[:1] == (3,):
        with library_errors(path, "loaded"):
            weights = [tensor_of(array) for array in arrays]
            stateless = map_objects(description, _stateless)
            return abstract_predictor(abstract(lambda: deserialize(stateless)), weights, path.name)
    if description is not None and structure is not None and importlib.util.find_spec("tf_keras"):
        predictor = _keras_2_predictor(description, structure, arrays, path.name)
        if predictor is not None:
            return predictor
    options = ExportOptions(structure.logits, structure.last_only) if structure else ExportOptions()
    weights, name = [tensor_of(array) for array in arrays], f"{path.name}, {WITHOUT_KERAS}"
    predictor = abstract_predictor(abstract(lambda: build(config, options)), weights, name)
    if structure is None:
        return predictor
    return predictor._replace(first_id=int(structure.mask_zero), shape=structure.shape)


def _stateless(value: dict[str, Any]) -> dict[str, Any]:
    """Makes the config of a layer stateless: from zero states it computes the same, with fewer variables."""
    return value | {"stateful": False} if "stateful" in value else value


def _keras_2_predictor(
    description: dict[str, Any], structure: Structure, arrays: list[np.ndarray], name: str
) -> Predictor | None:
    """Returns the `Predictor` of a model that Keras 2 builds from its JSON; None if it cannot."""
    import tf_keras

    try:
        if "module" in description:
            model = tf_keras.saving.deserialize_keras_object(description, safe_mode=True)
        else:
            model = tf_keras.models.model_from_json(json.dumps(description))
        if not model.built or not model.inputs:
            model.build(structure.shape)
        variables = [variable for layer in chain(model) for variable in weight_variables(layer)]
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return keras_predictor(model, name)
    except Exception:  # CuDNNLSTM, and settings of older versions
        return None
