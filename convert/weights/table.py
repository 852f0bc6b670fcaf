"""The table of weights, jaxlm <-> Keras, on NumPy arrays. Both directions use it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import abstract_model
from jaxlm.parallel.mesh import leaf_name

TABLES = ("embedding", "weights", "biases")  # jaxlm's weights with one row per word
ALIGNMENT = 64  # bytes; JAX and TensorFlow use memory that starts at a multiple of this without copying it


class Weight(NamedTuple):
    """One weight: its name in jaxlm, its path in Keras, and its layout in both."""

    jaxlm: str
    keras: str
    shape: tuple[int, ...]  # in jaxlm
    transposed: bool = False  # in Keras

    @property
    def keras_shape(self) -> tuple[int, ...]:
        """Its shape in Keras."""
        return self.shape[::-1] if self.transposed else self.shape


def weight_table(config: ModelConfig) -> Iterator[Weight]:
    """Yields every weight of a model, in the order in which Keras lists them.

    Both sides order the gates i, f, g, o (Keras writes c for g) and have a single bias, so LSTM weights
    are copied as they are. Only the softmax rows `[V, D]` become a Dense kernel `[D, V]`. Tied rows
    appear twice.
    """
    embedding, width = "weights" if config.tied else "embedding", config.embedding_size
    yield Weight(embedding, "embedding/embeddings", (config.vocab_size, width))
    for n, lstm in enumerate(config.lstms):
        ours, theirs, gates = f"lstms/{n}", f"lstm_{n + 1}/lstm_cell", 4 * lstm.size
        yield Weight(f"{ours}/kernel", f"{theirs}/kernel", (width, gates))
        yield Weight(f"{ours}/recurrent_kernel", f"{theirs}/recurrent_kernel", (lstm.size, gates))
        if lstm.use_bias:
            yield Weight(f"{ours}/bias", f"{theirs}/bias", (gates,))
        width = lstm.size
    for n, dense in enumerate(config.dense):
        yield Weight(f"dense/{n}/kernel", f"dense_{n + 1}/kernel", (width, dense.size))
        if dense.use_bias:
            yield Weight(f"dense/{n}/bias", f"dense_{n + 1}/bias", (dense.size,))
        width = dense.size
    yield Weight("weights", "softmax/kernel", (config.vocab_size, config.softmax_size), transposed=True)
    if config.softmax_bias:
        yield Weight("biases", "softmax/bias", (config.vocab_size,))


def to_keras_weights(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Renames and transposes jaxlm's weights to Keras'. Returns views, not copies.

    Raises:
      InputError: a weight is unknown, missing, of another shape, not float32, or not finite.
    """
    table = list(weight_table(config))
    zeros = [] if config.softmax_bias else ["biases"]  # not in the Keras model
    _check_names(weights, [weight.jaxlm for weight in table] + zeros)
    for weight in table:
        _check_array(weight.jaxlm, weights[weight.jaxlm], weight.shape)
    return {weight.keras: weights[weight.jaxlm].T if weight.transposed else weights[weight.jaxlm] for weight in table}


def from_keras_weights(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `to_keras_weights`, with the same checks."""
    table = list(weight_table(config))
    _check_names(weights, [weight.keras for weight in table])
    for weight in table:
        _check_array(weight.keras, weights[weight.keras], weight.keras_shape)
    if config.tied and not _are_tied(weights["embedding/embeddings"], weights["softmax/kernel"]):
        raise InputError("Invalid weight embedding/embeddings: the model is tied, but softmax/kernel differs from it.")
    zeros = {} if config.softmax_bias else {"biases": np.zeros(config.vocab_size, np.float32)}
    return zeros | {
        weight.jaxlm: weights[weight.keras].T if weight.transposed else weights[weight.keras] for weight in table
    }


def model_from_keras_arrays(arrays: Sequence[np.ndarray], config: ModelConfig | None = None) -> LanguageModel:
    """Makes a `LanguageModel` from a Keras model's weights.

    Args:
      arrays: in Keras' order: embeddings; kernel, recurrent_kernel and bias of each LSTM; kernel and bias of each
        Dense layer, the softmax last. Of any float type. If the embedding equals the last kernel, the model is
        tied.
      config: of the model; None takes it from the shapes, see `config_from_shapes`.

    Raises:
      InputError: the shapes do not fit the config, or no config has such shapes, or a weight is not finite.
    """
    shapes = [array.shape for array in arrays]
    config = config or config_from_shapes(shapes)
    table = list(weight_table(config))
    expected = [weight.keras_shape for weight in table]
    if shapes != expected:
        raise InputError(f"The weights do not fit the layers: expected shapes {expected}. Received: {shapes}.")
    named = {weight.keras: np.asarray(array, np.float32) for weight, array in zip(table, arrays, strict=True)}
    tied = config.softmax_size == config.embedding_size
    config = dataclasses.replace(config, tied=tied and _are_tied(arrays[0], named["softmax/kernel"]))
    return model_from_weights(from_keras_weights(named, config), config)


def config_from_shapes(shapes: Sequence[tuple[int, ...]]) -> ModelConfig:
    """Returns a model's config from the shapes of its weights in Keras' order.

    Shapes do not determine activations: Dense layers between LSTM and softmax are taken to be relu with a bias, and
    linear without.

    Raises:
      InputError: the shapes are not those of Embedding -> LSTM stack -> Dense layers.
    """
    problem = InputError(f"The weights are not those of Embedding -> LSTM -> Dense. Received shapes: {list(shapes)}.")
    rest = [tuple(map(int, shape)) for shape in shapes]
    if not rest or len(rest[0]) != 2:
        raise problem
    vocab_size, embedding_size = rest.pop(0)
    width = embedding_size
    lstms: list[LSTMConfig] = []
    dense: list[DenseConfig] = []
    while rest:
        kernel = rest.pop(0)
        if len(kernel) != 2 or kernel[0] != width or min(kernel) < 1:
            raise problem
        recurrent = bool(rest) and 4 * rest[0][0] == kernel[1] and rest[0] == (kernel[1] // 4, kernel[1])
        if recurrent:
            rest.pop(0)
        use_bias = bool(rest) and rest[0] == kernel[1:]
        if use_bias:
            rest.pop(0)
        width = kernel[1] // 4 if recurrent else kernel[1]
        if recurrent and not dense:
            lstms.append(LSTMConfig(width, use_bias))
        elif recurrent:
            raise problem
        else:
            dense.append(DenseConfig(width, "relu" if use_bias else "linear", use_bias))
    if not lstms or not dense:
        raise problem
    softmax = dense.pop()
    if softmax.size != vocab_size:
        raise InputError(
            f"The last Dense layer: expected {vocab_size} units, as many as the embedding has words."
            f" Received: {softmax.size}."
        )
    return ModelConfig(
        vocab_size, embedding_size, softmax_bias=softmax.use_bias, lstms=tuple(lstms), dense=tuple(dense)
    )


def language_model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """Returns a model's weights by their jaxlm names, such as "lstms/0/kernel", without the padding of a mesh."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0]
    weights = {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}
    return weights | {name: weights[name][: model.config.vocab_size] for name in TABLES if name in weights}


def model_from_weights(weights: Mapping[str, np.ndarray], config: ModelConfig) -> LanguageModel:
    """The inverse of `language_model_weights`. Copies each array once."""
    graphdef, params = nnx.split(abstract_model(config), ...)
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.device_put(aligned_copy(weights[leaf_name(path)])), nnx.to_pure_dict(params)
    )
    return nnx.merge(graphdef, arrays)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array that JAX and TensorFlow use without copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Returns a contiguous copy that JAX and TensorFlow use without copying it again."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _are_tied(embeddings: np.ndarray, kernel: np.ndarray) -> bool:
    return embeddings.shape == kernel.shape[::-1] and np.array_equal(embeddings, kernel.T)


def _check_names(weights: Mapping[str, np.ndarray], expected: list[str]) -> None:
    unknown, missing = sorted(set(weights) - set(expected)), sorted(set(expected) - set(weights))
    if unknown or missing:
        raise InputError(f"The weights do not fit the model: unknown {unknown}, missing {missing}.")


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"Invalid weight {name}: expected float32 {shape}. Received: {array.dtype} {array.shape}.")
    if not np.isfinite(array.sum(dtype=np.float64)):  # a sum needs no array of flags beside a large table
        raise InputError(
            f"Invalid weight {name}: it has NaN or infinite values. If training diverged, train again with a lower"
            " learning rate."
        )
