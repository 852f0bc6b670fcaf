"""Flax checkpoints: the weights in a tree of arrays, whichever of Flax' LSTM cells they are of."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.weights import from_keras_list
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel

GATES = ("i", "f", "g", "o")


def from_flax(tree: Mapping[Any, Any]) -> LanguageModel:
    """Makes a `LanguageModel` of the parameters of a Flax model: Embed -> LSTM cells -> Dense.

    Args:
      tree: nested mapping of arrays, such as linen's `variables["params"]` or
        `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, with `LSTMCell` or `OptimizedLSTMCell` of
        either; cells follow each other in the order of their names.

    Returns:
      The language model, float32. No function is given, so none is compared: evaluate both.

    Raises:
      InputError: there is not one embedding and one Dense, an array is of no known layer, or the
        shapes do not fit.

    References:
      `flax.linen.LSTMCell`, `flax.nnx.LSTMCell` (eight Linears), `flax.nnx.OptimizedLSTMCell` (two).
    """
    found: dict[str, list[tuple[Any, list[np.ndarray]]]] = {"embedding": [], "cell": [], "dense": []}
    _walk(tree, (), found)
    if len(found["embedding"]) != 1 or len(found["dense"]) != 1:
        counts = {kind: len(layers) for kind, layers in found.items()}
        raise InputError(f"Invalid `tree`: expected one embedding, LSTM cells and one Dense. Received: {counts}.")
    layers = found["embedding"] + sorted(found["cell"], key=lambda layer: layer[0]) + found["dense"]
    return from_keras_list([array for _, arrays in layers for array in arrays])


def _walk(tree: Mapping[Any, Any], path: tuple, found: dict[str, list]) -> None:
    keys = {str(key).rstrip("_"): value for key, value in tree.items()}  # nnx writes if_ for if
    place = tuple(_natural(name) for name in path)
    if keys.keys() == {f"{part}{gate}" for part in "ih" for gate in GATES}:
        kernels = [np.concatenate([keys[part + gate]["kernel"] for gate in GATES], axis=-1) for part in "ih"]
        found["cell"].append((place, [*kernels, np.concatenate([keys["h" + gate]["bias"] for gate in GATES])]))
    elif keys.keys() == {"dense_i", "dense_h"}:
        kernels = [np.asarray(keys[name]["kernel"]) for name in ("dense_i", "dense_h")]
        found["cell"].append((place, [*kernels, np.asarray(keys["dense_h"]["bias"])]))
    elif keys.keys() == {"kernel", "bias"}:
        found["dense"].append((place, [np.asarray(keys["kernel"]), np.asarray(keys["bias"])]))
    elif keys.keys() == {"embedding"} and not isinstance(keys["embedding"], Mapping):
        found["embedding"].append((place, [np.asarray(keys["embedding"])]))
    else:
        for name, value in tree.items():
            if not isinstance(value, Mapping):
                raise InputError(f"Invalid `tree`: {'/'.join(map(str, (*path, name)))} is of no layer that jaxlm has.")
            _walk(value, (*path, name), found)


def _natural(name: Any) -> tuple:
    """Sorts cell_2 before cell_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(name)))
