"""Weights in HDF5 files of Keras 2 and 3: finds them, checks them, and sorts them into Keras' order."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from convert.keras_models.json_config import Layer
from convert.weights.table import aligned_empty
from jaxlm.errors import InputError

LEAVES = ("0", "embeddings", "kernel", "1", "recurrent_kernel", "2", "bias")  # order within a layer
PARTS = ("vars", "cell", "layer")  # groups inside those of the layers
WRAPPERS = ("model_weights", "layers", "_layer_checkpoint_dependencies")  # groups above those of the layers
OPTIMIZER = re.compile(r"optimizer/vars/\d+")
NOT_WEIGHTS = re.compile(r"(^|/)(optimizer|optimizer_weights|seed_generator|metrics|top_level_model_weights)(/|$)")
Group = tuple[str, ...]  # of a layer in the file
MAX_COMPRESSION = 64  # of a file; a larger size in its headers is damage


def find_datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns all datasets by their paths, without following links.

    Raises:
      InputError: one is not an array of numbers inside the file, or is larger than the file can be.
    """
    found: dict[str, h5py.Dataset] = {}
    max_bytes = path.stat().st_size * MAX_COMPRESSION

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            links = [key for key in item if not isinstance(item.get(key, getlink=True), h5py.HardLink)]
            if links:
                raise InputError(f"{path}: {name}/{links[0]} is not an array of numbers inside the file, but a link.")
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


def weights_of_layers(
    path: Path, datasets: dict[str, h5py.Dataset], layers: Sequence[Layer], layer_names: Sequence[str]
) -> list[h5py.Dataset]:
    """Returns the weights of given layers in Keras' order.

    Args:
      path: of the file, for error messages.
      datasets: as from `find_datasets`.
      layers: those that have weights, in order.
      layer_names: names of the groups of a whole model in `.h5`; empty if groups are named after classes.

    Raises:
      InputError: a layer lacks a weight, or the file has one of another layer.
    """
    groups = _by_layer(_only_weights(datasets), by_class=not layer_names)
    found: list[h5py.Dataset] = []
    for layer in layers:
        keys = [layer.path] if not layer_names else [key for key in groups if _belongs(key, layer)]
        group = groups.pop(keys[0], []) if len(keys) == 1 else []
        bias = layer.kind != "Embedding" and bool(layer.config.get("use_bias", True))
        expected = (2 if layer.kind == "LSTM" else 1) + bias
        if len(group) != expected:
            name = layer.config.get("name", "?")
            raise InputError(f"{path}: layer {name!r}: expected {expected} weights. Received: {len(group)}.")
        found += group
    if groups:
        unknown = sorted("/".join(key) for key in groups)
        raise InputError(f"{path}: it has weights that belong to no layer of the model: {unknown}.")
    return found


def _belongs(key: Group, layer: Layer) -> bool:
    """Whether a group of a whole model in .h5 has the name of a layer, inside those of the models around it."""
    return key[0] == layer.names[0] and (len(layer.names) == 1 or layer.names[-1] in key[1:])


def weights_alone(path: Path, datasets: dict[str, h5py.Dataset], layer_names: Sequence[str]) -> list[h5py.Dataset]:
    """Returns the weights of a file without a config in Keras' order: that of `layer_names`, or the only one that fits.

    Raises:
      InputError: as `weights_of_layers`, or the order of the layers is ambiguous.
    """
    groups = _by_layer(_only_weights(datasets), by_class=not layer_names)
    if layer_names:
        order = sorted(groups, key=lambda key: layer_names.index(key[0]) if key[0] in layer_names else -1)
        ambiguous = len({key[0] for key in order}) < len(order)  # models inside the model
    else:
        _check_recurrent(path, groups)
        order, ambiguous = _fitting_order(path, groups)
    if ambiguous:
        names = ["/".join(key) for key in groups]
        raise InputError(
            f"{path}: the order of the layers {names} is ambiguous; convert the whole model, saved by `model.save`."
        )
    return [dataset for key in order for dataset in groups[key]]


def _check_recurrent(path: Path, groups: dict[Group, list[h5py.Dataset]]) -> None:
    """Raises `InputError` for another recurrent layer than an LSTM, and for one that reads in both directions."""
    for key, group in groups.items():
        is_recurrent = [len(dataset.shape) for dataset in group[:2]] == [2, 2]
        if is_recurrent and (not _is_lstm(group) or key[-1] in ("forward_layer", "backward_layer")):
            expected = "expected weights of Embedding, LSTM and Dense layers"
            raise InputError(f"{path}: {expected}. Received: those of {'/'.join(key)!r}.")


def _fitting_order(path: Path, groups: dict[Group, list[h5py.Dataset]]) -> tuple[list[Group], bool]:
    """Returns layers in the order in which each fits the one before it, and whether another layer fits as well.

    Layers of one class are numbered in their order; layers of different classes are not.
    """
    rest = sorted(groups, key=lambda key: (key[:-1], _number(key[-1])))
    order = [key for key in rest if key[-1].startswith("embedding")]
    if len(order) != 1 or len(groups[order[0]][0].shape) != 2:
        raise InputError(f"{path}: expected the weights of one embedding. Received: {len(order)}.")
    words, width = groups[order[0]][0].shape
    rest.remove(order[0])
    while rest:
        heads = {(*key[:-1], re.sub(r"_\d+$", "", key[-1])): key for key in reversed(rest)}.values()  # of each class
        fitting = [key for key in heads if groups[key][0].shape[:1] == (width,) and len(groups[key][0].shape) == 2]
        recurrent = [key for key in fitting if _is_lstm(groups[key])]
        inner = [key for key in fitting if groups[key][0].shape[1] != words]
        fitting = recurrent or (inner if len(rest) > 1 and inner else fitting)
        if len(fitting) != 1:
            return order, True
        order.append(fitting[0])
        rest.remove(fitting[0])
        width = groups[fitting[0]][0].shape[1] // (4 if recurrent else 1)
    return order, False


def _is_lstm(group: Sequence[h5py.Dataset]) -> bool:
    kernel, *others = [dataset.shape for dataset in group]
    return bool(others) and len(kernel) == 2 and others[0] == (kernel[1] // 4, kernel[1])


def _only_weights(datasets: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
    return {name: dataset for name, dataset in datasets.items() if not NOT_WEIGHTS.search(name)}


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


def _by_layer(datasets: dict[str, h5py.Dataset], *, by_class: bool) -> dict[Group, list[h5py.Dataset]]:
    """Groups datasets by layer, each group in the order kernel, recurrent_kernel, bias."""
    layers: dict[tuple[str, ...], list[tuple[int, h5py.Dataset]]] = {}
    for name, dataset in datasets.items():
        *groups, leaf = [group for group in name.split("/") if group not in WRAPPERS]
        leaf = leaf.split(":")[0]
        key = tuple(group for group in groups if not (by_class and group in PARTS))
        if leaf not in LEAVES or not key:
            raise InputError(f"Expected weights of Embedding, LSTM and Dense layers. Received: {name!r}.")
        layers.setdefault(key, []).append((LEAVES.index(leaf), dataset))
    return {key: [dataset for _, dataset in sorted(layer, key=lambda pair: pair[0])] for key, layer in layers.items()}


def _number(name: str) -> int:
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 0
