"""Flax parameters: the weights in a tree of arrays, from any of Flax' LSTM cells."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.weights.table import model_from_keras_arrays
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel

GATES = ("i", "f", "g", "o")


def from_flax(tree: Mapping[Any, Any]) -> LanguageModel:
    """Makes a `LanguageModel` from the parameters of a Flax model: Embed -> LSTM cells -> Dense.

    The tree holds no function to compare with, so nothing is checked but names and shapes: evaluate both models.

    Args:
      tree: nested mapping of arrays, such as linen's `variables["params"]` or
        `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, with `LSTMCell` or `OptimizedLSTMCell`. The order of
        the cells is that of their names.

    Returns:
      The language model, float32.

    Raises:
      InputError: there is not exactly one embedding and one Dense, an array belongs to no known layer, or the
        shapes do not fit each other.

    References:
      `flax.linen.LSTMCell`, `flax.nnx.LSTMCell` (eight Linears), `flax.nnx.OptimizedLSTMCell` (two).

    >>> cell = {"dense_i": {"kernel": np.zeros((8, 64))}}
    >>> cell["dense_h"] = {"kernel": np.zeros((16, 64)), "bias": np.zeros(64)}
    >>> head = {"kernel": np.zeros((16, 50)), "bias": np.zeros(50)}
    >>> tree = {"Embed_0": {"embedding": np.zeros((50, 8))}, "LSTMCell_0": cell, "Dense_0": head}
    >>> from_flax(tree).config.hidden_size
    16
    """
    found: dict[str, list[tuple[Any, list[np.ndarray]]]] = {"embedding": [], "cell": [], "dense": []}
    _walk(tree, (), found)
    if len(found["embedding"]) != 1 or len(found["dense"]) != 1:
        counts = {kind: len(layers) for kind, layers in found.items()}
        raise InputError(f"Invalid `tree`: expected one embedding, LSTM cells and one Dense. Received: {counts}.")
    layers = found["embedding"] + sorted(found["cell"], key=lambda layer: layer[0]) + found["dense"]
    return model_from_keras_arrays([array for _, arrays in layers for array in arrays])


def _walk(tree: Mapping[Any, Any], path: tuple, found: dict[str, list]) -> None:
    """Collects the layers of a tree, each with its position and its arrays in Keras' layout."""
    keys = {str(key).rstrip("_"): value for key, value in tree.items()}  # nnx writes if_ for if
    position = tuple(_natural(name) for name in path)
    if keys.keys() == {f"{side}{gate}" for side in "ih" for gate in GATES}:
        kernels = [np.concatenate([keys[side + gate]["kernel"] for gate in GATES], axis=-1) for side in "ih"]
        found["cell"].append((position, [*kernels, np.concatenate([keys["h" + gate]["bias"] for gate in GATES])]))
    elif keys.keys() == {"dense_i", "dense_h"}:
        kernels = [np.asarray(keys[name]["kernel"]) for name in ("dense_i", "dense_h")]
        found["cell"].append((position, [*kernels, np.asarray(keys["dense_h"]["bias"])]))
    elif keys.keys() == {"kernel", "bias"}:
        found["dense"].append((position, [np.asarray(keys["kernel"]), np.asarray(keys["bias"])]))
    elif keys.keys() == {"embedding"} and not isinstance(keys["embedding"], Mapping):
        found["embedding"].append((position, [np.asarray(keys["embedding"])]))
    else:
        for name, value in tree.items():
            if not isinstance(value, Mapping):
                where = "/".join(map(str, (*path, name)))
                raise InputError(f"Invalid `tree`: {where} belongs to no layer that jaxlm has.")
            _walk(value, (*path, name), found)


def _natural(name: Any) -> tuple:
    """Returns a key that sorts cell_2 before cell_10."""
    return tuple((int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", str(name)))
