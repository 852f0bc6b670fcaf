"""The inputs of a Keras model as ids of its lookups and features of its body; the mask of its outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from convert.fit.keras_body import KerasBody, output_mask
from convert.fit.split_model import Cut
from jaxlm.errors import require
from jaxlm.token_ids import check_ids

Prepared = tuple[tuple[np.ndarray, ...], Any]  # ids of each lookup, int32, and the features of the body
Prepare = Callable[[Sequence[np.ndarray], str], Prepared]  # inputs, name of the argument -> ids, features


def integer_ids(values: np.ndarray, name: str) -> np.ndarray:
    """Returns ids of any numeric type as int32, after checking that all of them fit."""
    if values.dtype.kind == "f":
        require(bool(np.all(values == np.rint(values))), name, "integer ids", f"{values.dtype} with fractions")
        require(bool(np.all(np.isfinite(values))), name, "finite ids", "an infinite one")
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    require(-(2**31) <= lowest and highest < 2**31, name, "ids below 2**31", f"{lowest} to {highest}")
    return values.astype(np.int32)


def input_names(model: Any) -> tuple[str, ...]:
    """Returns the names of a model's inputs in its order: their keys in a dict, unless it nests them."""
    structure = getattr(model, "_inputs_struct", None)
    if isinstance(structure, dict) and not any(isinstance(each, dict | list | tuple) for each in structure.values()):
        return tuple(sorted(structure))
    return tuple(tensor.name for tensor in model.inputs)


def preparation(model: Any, cut: Cut, masked: tuple[int, ...]) -> Prepare:
    """Returns the function from a model's inputs to the ids of its lookups and to the body's features."""
    places = {id(tensor): i for i, tensor in enumerate(model.inputs)}
    computed = [lookup.ids for lookup in cut.lookups if id(lookup.ids) not in places]
    computing = keras.Model(model.inputs, computed) if computed else None

    def prepare(inputs: Sequence[np.ndarray], name: str) -> Prepared:
        names = [name] if len(inputs) == 1 else [f"{name}[{i}]" for i in range(len(inputs))]
        inputs = [
            _of_rank(*each) for each in zip(inputs, (tensor.shape for tensor in model.inputs), names, strict=True)
        ]
        results = iter([] if computing is None else keras.tree.flatten(computing(list(inputs))))
        ids = []
        for lookup in cut.lookups:
            place = places.get(id(lookup.ids))
            found = inputs[place] if place is not None else np.asarray(keras.ops.convert_to_numpy(next(results)))
            where = names[place] if place is not None else lookup.layer.name
            ids.append(integer_ids(found, where))
            check_ids(where, ids[-1].ravel(), lookup.layer.input_dim)
        features = [inputs[places[id(tensor)]].astype(tensor.dtype) for tensor in cut.features]
        return tuple(ids), (*features, *(ids[i] != 0 for i in masked))

    return prepare


def _of_rank(array: np.ndarray, shape: tuple[int | None, ...], name: str) -> np.ndarray:
    """Returns an array with the rank of an input; Keras adds and removes a last dimension of 1, too."""
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    require(array.ndim == len(shape), name, f"shape {shape}; a dataset needs `.batch()`", array.shape)
    return array


def mask_of_outputs(
    body: KerasBody | None, widths: Sequence[int], batch_size: int | None, ids: Sequence[np.ndarray], features: Any
) -> np.ndarray | None:
    """Returns the mask of the outputs, as Keras carries it to the head, or None.

    Args:
      body: None if the head does not keep masks.
      widths: of the rows of each lookup.
      batch_size: of a stateful body; a batch of another size has no mask here, since it is refused.
      ids: of each lookup.
      features: of the body.
    """
    if body is None or batch_size not in (None, len((*ids, *features)[0])):
        return None
    result = output_mask(body, tuple(widths), ids, features)
    return None if result is None else np.asarray(result)
