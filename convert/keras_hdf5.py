"""Weights in HDF5, as Keras 2 and 3 write them: found, checked, and put into Keras' order."""

import re
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from convert.weights import aligned_empty
from jaxlm.errors import InputError

LEAVES = ("0", "embeddings", "kernel", "1", "recurrent_kernel", "2", "bias")  # order within a layer
WRAPPERS = ("model_weights", "layers", "_layer_checkpoint_dependencies")  # groups above those of the layers
OPTIMIZER = re.compile(r"optimizer/vars/\d+")
NOT_WEIGHTS = re.compile(r"(^|/)(optimizer|optimizer_weights|seed_generator|metrics|top_level_model_weights)(/|$)")
MAX_COMPRESSION = 64  # of a file; what claims to be larger is damaged


def find_datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns all datasets by their paths, without following links.

    Raises:
      InputError: one is not an array of numbers inside the file, or is larger than the file can be.
    """
    found: dict[str, h5py.Dataset] = {}
    max_bytes = path.stat().st_size * MAX_COMPRESSION

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.dtype.kind not in "fiuV" or item.external or item.is_virtual:
            raise InputError(f"{path}: {name} is not an array of numbers inside the file (dtype {item.dtype}).")
        if item.nbytes > max(max_bytes, 1 << 24):
            raise InputError(f"{path}: {name} is larger than the file.")
        found[name] = item

    file.visititems(visit)
    if sum(item.nbytes for item in found.values()) > max(max_bytes, 1 << 26):
        raise InputError(f"{path}: its weights are larger than the file.")
    return found


def model_weights(path: Path, datasets: dict[str, h5py.Dataset], layer_names: list[str]) -> list[h5py.Dataset]:
    """Returns the weights of the model in Keras' order.

    Args:
      path: of the file, to name in errors.
      datasets: as from `find_datasets`.
      layer_names: in order, if the file has them.

    Raises:
      InputError: a weight is of another layer, or the order of the layers is ambiguous.
    """
    layers = _by_layer({name: dataset for name, dataset in datasets.items() if not NOT_WEIGHTS.search(name)})
    if set(layers) <= set(layer_names):  # a whole model in .h5 has the layers' own names
        order = [name for name in layer_names if name in layers]
    else:  # other files have the names of their classes, numbered
        order = sorted(layers, key=lambda name: (_rank(name, layers[name]), _number(name)))
        lstms = [re.sub(r"_\d+$", "", name) for name in order if len(layers[name]) == 3]
        if len(set(lstms)) > 1:
            raise InputError(f"{path}: the order of the layers {lstms} is ambiguous; convert the whole model instead.")
    return [dataset for name in order for dataset in layers[name]]


def optimizer_variables(datasets: dict[str, h5py.Dataset]) -> list[h5py.Dataset]:
    """Returns the variables of the optimizer in Keras' order."""
    variables = {int(name.split("/")[-1]): item for name, item in datasets.items() if OPTIMIZER.fullmatch(name)}
    return [variables[i] for i in sorted(variables)]


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """Reads a dataset into memory that JAX and TensorFlow use without copying it."""
    array = aligned_empty(dataset.shape, dataset.dtype)
    if array.shape:
        dataset.read_direct(array)
    else:
        array[()] = dataset[()]
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array  # as Keras stores bfloat16


def _by_layer(datasets: dict[str, h5py.Dataset]) -> dict[str, list[h5py.Dataset]]:
    """Groups datasets by layer, each group in the order kernel, recurrent_kernel, bias."""
    layers: dict[str, list[tuple[int, h5py.Dataset]]] = {}
    for name, dataset in datasets.items():
        groups = [group for group in name.split("/") if group not in WRAPPERS]
        leaf = groups[-1].split(":")[0]
        if leaf not in LEAVES:
            raise InputError(f"Weight {name!r} belongs to none of Embedding, LSTM and Dense.")
        layers.setdefault(groups[0], []).append((LEAVES.index(leaf), dataset))
    return {name: [dataset for _, dataset in sorted(layer, key=lambda pair: pair[0])] for name, layer in layers.items()}


def _rank(name: str, layer: list[h5py.Dataset]) -> int:
    """Ranks a layer by its weights: one in Embedding, three in LSTM, one in the bottleneck (dense), two in Dense."""
    if len(layer) == 1:
        return 2 if name.startswith("dense") else 0
    return 1 if len(layer) == 3 else 3


def _number(name: str) -> int:
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 0
