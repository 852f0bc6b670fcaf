"""Writes Keras files directly from arrays in memory, without a second copy of any weight.

Keras saves a template: a model of the same layers, one unit wide, in which every weight holds its own index.
The file written is a copy of it in which each dataset is replaced by the weight whose index it holds.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import h5py
import keras
import ml_dtypes
import numpy as np

from convert.keras_models import source_json
from convert.keras_models.builder import abstract, assign_weights, build, compile_model
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.optimizer_state import SLOTS, OptimizerState
from convert.weights.run_model import RunModel
from convert.weights.table import language_model_weights, to_keras_weights, weight_table
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.quiet import quiet

BLOCK = 1 << 26  # bytes of an array that are copied at a time
KERAS_2_KEYS = {  # the settings of each layer that Keras 2 and 3 both read; both have the same defaults for the rest
    "InputLayer": ("name", "dtype"),
    "Embedding": ("name", "input_dim", "output_dim"),
    "LSTM": ("name", "units", "return_sequences", "use_bias"),
    "Dense": ("name", "units", "activation", "use_bias"),
}


class Slot(NamedTuple):
    """Space for an array in a file."""

    offset: int  # bytes from the beginning of the file
    array: np.ndarray
    dtype: np.dtype  # in the file


def write(run: RunModel, target: Path, options: ExportOptions) -> None:
    """Writes a `.keras`, `.weights.h5` or `.h5` file, by the file extension of `target`.

    Args:
      run: the model; with an optimizer, the `.keras` model is compiled with it.
      target: file to write.
      options: inputs, outputs and data type of the model.

    Raises:
      InputError: a weight is NaN or infinite, or Keras cannot load the data type of the weights from the format.
    """
    if run.description is not None and options == DEFAULT_OPTIONS:
        _write_rebuilt(run, run.description, target)
    elif target.suffix == ".keras":
        _write_archive(run, target, options)
    elif target.name.endswith(".weights.h5"):
        _write_hdf5(run, target, options, lambda model, path: model.save_weights(path), {})
    else:
        config = {"model_config": _keras_2_config(run.model.config, options)}
        _write_hdf5(run, target, options, _save_hdf5, config)


def _write_rebuilt(run: RunModel, description: dict[str, Any], target: Path) -> None:
    """Writes the run's source model through Keras, with all its layers. This takes more memory."""
    weights = to_keras_weights(language_model_weights(run.model), run.model.config)
    model = source_json.rebuild(description, weights)
    if run.optimizer:
        compile_model(model, run.optimizer, run.model.config)
    if target.name.endswith(".weights.h5"):
        model.save_weights(target)
    elif target.suffix == ".keras":
        model.save(target)
    elif any(variable.dtype == "bfloat16" for variable in model.weights):  # opaque bytes in HDF5
        raise InputError("Keras cannot load bfloat16 weights from .h5; use .keras or .weights.h5.")
    else:
        _save_hdf5(model, target)


def _save_hdf5(model: keras.Model, path: Path) -> None:
    """Saves a whole model in HDF5 without its optimizer, and without Keras' warning that the format is old."""
    with quiet("absl"):
        model.save(path, include_optimizer=False)


def _write_archive(run: RunModel, target: Path, options: ExportOptions) -> None:
    config, optimizer = run.model.config, run.optimizer
    arrays = _arrays(language_model_weights(run.model), optimizer, config)
    template = _template(config, options, optimizer)
    description = keras.saving.serialize_keras_object(abstract(lambda: build(config, options)))
    if optimizer:
        description["compile_config"] = keras.saving.serialize_keras_object(template)["compile_config"]
    with TemporaryDirectory(dir=target.parent) as directory, zipfile.ZipFile(target, "w") as archive:
        members = Path(directory) / "members"
        template.save(members, zipped=False)
        for path in sorted(path for path in members.iterdir() if path.is_file()):  # uncompressed, as Keras does
            if path.name == "config.json":
                archive.writestr(path.name, json.dumps(description))
            elif path.suffix == ".h5":
                with archive.open(path.name, "w", force_zip64=True) as member:
                    for block in filled_template(path, arrays, {}):
                        member.write(block)
            else:
                archive.write(path, path.name)


def _write_hdf5(
    run: RunModel,
    target: Path,
    options: ExportOptions,
    save: Callable[[keras.Model, Path], None],
    attributes: Mapping[str, Any],
) -> None:
    arrays = _arrays(language_model_weights(run.model), None, run.model.config)
    template = _template(run.model.config, options, None)
    with TemporaryDirectory(dir=target.parent) as directory, target.open("wb") as file:
        path = Path(directory) / target.name
        save(keras.Sequential(template.layers, name="language_model"), path)
        for block in filled_template(path, arrays, attributes):
            file.write(block)


def _keras_2_config(config: ModelConfig, options: ExportOptions) -> dict[str, Any]:
    """Returns the config of a Sequential model that Keras 2 and 3 both understand."""
    inputs = {"name": "token_ids", "dtype": "int32", "batch_input_shape": [None, None]}
    layers = [{"class_name": "InputLayer", "config": inputs}]
    for layer in abstract(lambda: build(config, options)).layers[1:]:
        kind, settings = type(layer).__name__, layer.get_config()
        layers.append({"class_name": kind, "config": {key: settings[key] for key in KERAS_2_KEYS[kind]}})
    return {"class_name": "Sequential", "config": {"name": "language_model", "layers": layers}}


def _arrays(
    weights: Mapping[str, np.ndarray], optimizer: OptimizerState | None, config: ModelConfig
) -> list[np.ndarray]:
    """Returns all arrays in Keras' layout, as views: the weights, then each slot of the optimizer."""
    slots = [optimizer.slots[slot] for slot in SLOTS[optimizer.name]] if optimizer else []
    return [array for arrays in (weights, *slots) for array in to_keras_weights(arrays, config).values()]


def _template(config: ModelConfig, options: ExportOptions, optimizer: OptimizerState | None) -> keras.Model:
    """Builds the model one unit wide, each weight filled with its index in `_arrays`."""
    lstms = tuple(dataclasses.replace(layer, size=1) for layer in config.lstms)
    dense = tuple(dataclasses.replace(layer, size=1) for layer in config.dense)
    sizes = ModelConfig(1, 1, lstms=lstms, dense=dense, softmax_bias=config.softmax_bias, tied=config.tied)
    model, table = build(sizes, options), list(weight_table(sizes))
    assign_weights(model, {weight.keras: np.full(weight.keras_shape, i) for i, weight in enumerate(table)})
    if optimizer:
        slots = {}
        for n, slot in enumerate(SLOTS[optimizer.name], start=1):
            first = n * len(table)
            slots[slot] = {w.jaxlm: np.full(w.shape, first + i, np.float32) for i, w in enumerate(table)}
        compile_model(model, optimizer._replace(slots=slots), sizes)
    return model


def filled_template(template: Path, arrays: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the bytes of the file, from beginning to end.

    HDF5 makes a sparse file with space for the arrays. Their bytes are written without it, so that a full disk
    is an ordinary error.

    Args:
      template: file with the model from `_template`; a second file is made in the same directory.
      arrays: as from `_arrays`.
      attributes: JSON values that replace attributes of the file.
    """
    skeleton = template.with_suffix(".skeleton")
    slots = _make_skeleton(template, skeleton, arrays, attributes)
    with skeleton.open("rb") as file:
        for offset, array, dtype in sorted(slots, key=lambda slot: slot.offset):
            yield file.read(offset - file.tell())
            rows = max(1, BLOCK // (array[:1].size * dtype.itemsize))
            for start in range(0, len(array), rows):
                yield np.ascontiguousarray(array[start : start + rows], dtype).reshape(-1).view(np.uint8).data
            file.seek(offset + array.size * dtype.itemsize)
        yield file.read()


def _make_skeleton(
    template: Path, skeleton: Path, arrays: Sequence[np.ndarray], attributes: Mapping[str, Any]
) -> list[Slot]:
    """Copies the template with empty space of the right size for each array; returns the positions of the space."""
    reserved = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    reserved.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    reserved.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    slots: list[Slot] = []
    with h5py.File(template, "r") as small, h5py.File(skeleton, "w") as large:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                twin = large.require_group(name)
            elif not item.shape:  # an optimizer's steps and learning rate
                twin = large.create_dataset(name, data=item[()], dtype=item.dtype)
            else:
                dtype = np.dtype(ml_dtypes.bfloat16) if item.dtype.kind == "V" else item.dtype  # as Keras stores it
                array = arrays[int(item[()].view(dtype).flat[0])]
                twin = large.create_dataset(name, array.shape, item.dtype, dcpl=reserved)
                slots.append(Slot(twin.id.get_offset(), array, dtype))
            twin.attrs.update(item.attrs)

        large.attrs.update(small.attrs)
        large.attrs.update({key: json.dumps(value) for key, value in attributes.items()})
        small.visititems(copy)
    return slots
