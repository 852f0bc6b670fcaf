"""Keras' own files, written from arrays as they lie in memory, with no second copy of a weight.

Keras saves a model of the same layers that is one unit wide, each weight of it filled with its own number. What is
written is that file, with each dataset swapped for the weight whose number it holds.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np

from convert.keras_model import Form, abstract, build, fill
from convert.optimizer import SLOTS, OptimizerState, compile_model
from convert.runs import Run
from convert.weights import language_model_weights, to_keras, weight_table
from jaxlm.config import ModelConfig

BLOCK = 1 << 26  # bytes of an array that are copied at a time
KERAS_2_KEYS = {  # of each layer, what Keras 2 and 3 both read; what is left out has its default in both
    "InputLayer": ("name", "dtype"),
    "Embedding": ("name", "input_dim", "output_dim"),
    "LSTM": ("name", "units", "return_sequences"),
    "Dense": ("name", "units", "activation", "use_bias"),
}


def write_keras(run: Run, target: Path, form: Form) -> None:
    """Writes a `.keras` file, compiled with the optimizer where the run has it."""
    config, optimizer = run.model.config, run.optimizer
    arrays = _arrays(language_model_weights(run.model), optimizer, config)
    small = _numbered(config, form, optimizer)
    description = keras.saving.serialize_keras_object(abstract(lambda: build(config, form)))
    if optimizer:
        description["compile_config"] = keras.saving.serialize_keras_object(small)["compile_config"]
    with TemporaryDirectory(dir=target.parent) as directory, zipfile.ZipFile(target, "w") as archive:
        parts = Path(directory) / "parts"
        small.save(parts, zipped=False)
        for path in sorted(path for path in parts.iterdir() if path.is_file()):  # stored, as Keras does
            if path.name == "config.json":
                archive.writestr(path.name, json.dumps(description))
            elif path.suffix == ".h5":
                with archive.open(path.name, "w", force_zip64=True) as member:
                    for block in _swapped(path, arrays, {}):
                        member.write(block)
            else:
                archive.write(path, path.name)


def write_h5(run: Run, target: Path, form: Form) -> None:
    """Writes a whole model that Keras 3 and Keras 2 both load: its config is in words that both know."""
    layers = [
        {
            "class_name": "InputLayer",
            "config": {"name": "token_ids", "dtype": "int32", "batch_input_shape": [None, None]},
        }
    ]
    for layer in abstract(lambda: build(run.model.config, form)).layers[1:]:
        kind, config = type(layer).__name__, layer.get_config()
        layers.append({"class_name": kind, "config": {key: config[key] for key in KERAS_2_KEYS[kind]}})
    config = {"class_name": "Sequential", "config": {"name": "language_model", "layers": layers}}
    _write_sequential(
        run, target, form, lambda model, path: model.save(path, include_optimizer=False), {"model_config": config}
    )


def write_weights(run: Run, target: Path, form: Form) -> None:
    """Writes a `.weights.h5` file for `load_weights` of a Sequential model."""
    _write_sequential(run, target, form, lambda model, path: model.save_weights(path), {})


def _write_sequential(
    run: Run,
    target: Path,
    form: Form,
    save: Callable[[keras.Model, Path], None],
    attributes: Mapping[str, Any],
) -> None:
    arrays = _arrays(language_model_weights(run.model), None, run.model.config)
    small = _numbered(run.model.config, form, None)
    with TemporaryDirectory(dir=target.parent) as directory, target.open("wb") as file:
        template = Path(directory) / target.name
        save(keras.Sequential(small.layers, name="language_model"), template)
        for block in _swapped(template, arrays, attributes):
            file.write(block)


def _arrays(
    weights: Mapping[str, np.ndarray], optimizer: OptimizerState | None, config: ModelConfig
) -> list[np.ndarray]:
    """All arrays as Keras has them, views: the weights, then each slot of the optimizer."""
    slots = [optimizer.slots[slot] for slot in SLOTS[optimizer.name]] if optimizer else []
    return [array for arrays in (weights, *slots) for array in to_keras(arrays, config).values()]


def _numbered(config: ModelConfig, form: Form, optimizer: OptimizerState | None) -> keras.Model:
    """The model, one unit wide, filled with the places of its weights in `_arrays`."""
    projection_size = min(config.projection_size, 1)
    sizes = dataclasses.replace(config, vocab_size=1, embedding_size=1, hidden_size=1, projection_size=projection_size)
    model, table = build(sizes, form), list(weight_table(sizes))
    fill(model, {weight.keras: np.full(weight.keras_shape, n) for n, weight in enumerate(table)})
    if optimizer:
        slots = {
            slot: {
                weight.jaxlm: np.full(weight.shape, k * len(table) + n, np.float32) for n, weight in enumerate(table)
            }
            for k, slot in enumerate(SLOTS[optimizer.name], start=1)
        }
        compile_model(model, optimizer._replace(slots=slots), sizes)
    return model


def _swapped(template: Path, arrays: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> Iterator[memoryview]:
    """Yields the bytes of the file, from its beginning to its end.

    HDF5 makes a sparse file that has room for the arrays and is told to leave it empty; what is written goes past it,
    so that a full disk is an error like any other.

    Args:
      template: file of the model that `_numbered` made; a file is made beside it.
      arrays: as from `_arrays`.
      attributes: JSON values that take the place of the file's own.
    """
    skeleton = template.with_suffix(".skeleton")
    room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    room.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    places: list[tuple[int, np.ndarray, np.dtype]] = []
    with h5py.File(template, "r") as small, h5py.File(skeleton, "w") as large:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                twin = large.require_group(name)
            elif not item.shape:  # an optimizer's steps and learning rate
                twin = large.create_dataset(name, data=item[()], dtype=item.dtype)
            else:
                dtype = np.dtype(ml_dtypes.bfloat16) if item.dtype.kind == "V" else item.dtype  # as Keras stores it
                array = arrays[int(item[()].view(dtype).flat[0])]
                twin = large.create_dataset(name, array.shape, item.dtype, dcpl=room)
                places.append((twin.id.get_offset(), array, dtype))
            twin.attrs.update(item.attrs)

        large.attrs.update(small.attrs)
        large.attrs.update({key: json.dumps(value) for key, value in attributes.items()})
        small.visititems(copy)
    with skeleton.open("rb") as file:
        for offset, array, dtype in sorted(places, key=lambda place: place[0]):
            yield memoryview(file.read(offset - file.tell()))
            rows = max(1, BLOCK // (array[:1].size * dtype.itemsize))
            for start in range(0, len(array), rows):
                yield np.ascontiguousarray(array[start : start + rows], dtype).reshape(-1).view(np.uint8).data
            file.seek(offset + array.size * dtype.itemsize)
        yield memoryview(file.read())
