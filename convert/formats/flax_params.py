"""Flax parameters: the weights of Flax' LSTM cells in a tree of arrays."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.checks.comparison import check
from convert.checks.predictor import Predictions, Predictor, language_model_predictor
from convert.weights.table import model_from_keras_arrays
from jaxlm.errors import InputError
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel

GATES = ("i", "f", "g", "o")


class FlaxLayer(NamedTuple):
    """A layer of a tree."""

    kind: str  # "embedding", "cell" or "dense"
    position: tuple  # sorts layers of a kind
    arrays: list[np.ndarray]  # in Keras' layout
    params: dict[str, Any]  # its subtree


def from_flax(tree: Mapping[Any, Any]) -> LanguageModel:
    """Makes a `LanguageModel` from the parameters of a Flax model: Embed -> LSTM cells -> Dense.

    The tree has no activations: the comparison runs its parameters through Flax' own layers with their defaults, on
    random ids.

    Args:
      tree: nested mapping of arrays, such as linen's `variables["params"]` or
        `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, with `LSTMCell` or `OptimizedLSTMCell`. The order of
        the cells is that of their names.

    Returns:
      The language model, float32.

    Raises:
      InputError: there is not exactly one embedding and one Dense, an array does not belong to a known layer, the
        shapes do not fit each other, a weight is not finite, or the log-probabilities differ.

    References:
      `flax.linen.LSTMCell`, `flax.nnx.LSTMCell` (eight Linears), `flax.nnx.OptimizedLSTMCell` (two).

    >>> cell = {"dense_i": {"kernel": np.zeros((8, 64))}}
    >>> cell["dense_h"] = {"kernel": np.zeros((16, 64)), "bias": np.zeros(64)}
    >>> head = {"kernel": np.zeros((16, 50)), "bias": np.zeros(50)}
    >>> tree = {"Embed_0": {"embedding": np.zeros((50, 8))}, "LSTMCell_0": cell, "Dense_0": head}
    >>> from_flax(tree).config.hidden_size
    16
    """
    layers: list[FlaxLayer] = []
    _walk(tree, (), layers)
    counts = {kind: sum(layer.kind == kind for layer in layers) for kind in ("embedding", "cell", "dense")}
    if counts["embedding"] != 1 or counts["dense"] != 1:
        raise InputError(f"Invalid `tree`: expected one embedding, LSTM cells and one Dense. Received: {counts}.")
    order = list(counts)
    layers.sort(key=lambda layer: (order.index(layer.kind), layer.position))
    model = model_from_keras_arrays([array for layer in layers for array in layer.arrays])
    check(_flax_predictor(layers), language_model_predictor(model))
    return model


def _walk(tree: Mapping[Any, Any], path: tuple, layers: list[FlaxLayer]) -> None:
    """Collects the layers of a tree."""
    keys = {str(key).rstrip("_"): value for key, value in tree.items()}  # nnx writes if_ for if
    position = tuple(_natural(name) for name in path)
    if keys.keys() == {f"{side}{gate}" for side in "ih" for gate in GATES}:
        kernels = [np.concatenate([keys[side + gate]["kernel"] for gate in GATES], axis=-1) for side in "ih"]
        bias = np.concatenate([keys["h" + gate]["bias"] for gate in GATES])
        layers.append(FlaxLayer("cell", position, [*kernels, bias], keys))
    elif keys.keys() == {"dense_i", "dense_h"}:
        kernels = [np.asarray(keys[name]["kernel"]) for name in ("dense_i", "dense_h")]
        layers.append(FlaxLayer("cell", position, [*kernels, np.asarray(keys["dense_h"]["bias"])], keys))
    elif keys.keys() == {"kernel", "bias"}:
        layers.append(FlaxLayer("dense", position, [np.asarray(keys["kernel"]), np.asarray(keys["bias"])], keys))
    elif keys.keys() == {"embedding"} and not isinstance(keys["embedding"], Mapping):
        layers.append(FlaxLayer("embedding", position, [np.asarray(keys["embedding"])], keys))
    else:
        for name, value in tree.items():
            if not isinstance(value, Mapping):
                where = "/".join(map(str, (*path, name)))
                raise InputError(
                    f"Invalid `tree`: expected parameters of Embed, LSTM cells and Dense. Received: {where}."
                )
            _walk(value, (*path, name), layers)


def _natural(name: Any) -> tuple:
    """Returns a key that sorts cell_2 before cell_10."""
    return tuple((int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", str(name)))


def _flax_predictor(layers: list[FlaxLayer]) -> Predictor:
    """Returns the `Predictor` of Flax' own layers with the parameters of a tree."""
    modules = [_module(layer) for layer in layers]

    @in_float32
    def predict(ids: np.ndarray) -> Predictions:
        outputs = jnp.asarray(ids)
        with jax.numpy_rank_promotion("allow"):  # Flax adds biases in this way
            for module in modules:
                outputs = module(outputs)
        return Predictions(np.asarray(jax.nn.log_softmax(outputs)), {})

    return Predictor("Flax", layers[0].arrays[0].shape[0], predict)


def _module(layer: FlaxLayer) -> Any:
    """Returns Flax' own layer with the parameters of a tree."""
    width, size = layer.arrays[0].shape
    params = {f"{name}_" if name == "if" else name: value for name, value in layer.params.items()}

    def make() -> Any:
        rngs = nnx.Rngs(0)
        if layer.kind == "embedding":
            return nnx.Embed(width, size, rngs=rngs)
        if layer.kind == "dense":
            return nnx.Linear(width, size, rngs=rngs)
        cell = nnx.OptimizedLSTMCell if "dense_i" in params else nnx.LSTMCell
        return cell(width, size // 4, rngs=rngs)

    graphdef, *states = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    arrays = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
    module = nnx.merge(graphdef, arrays, *states[1:])
    return nnx.RNN(module) if layer.kind == "cell" else module
