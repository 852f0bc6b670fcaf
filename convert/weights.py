"""The one table of weights, jaxlm <-> Keras, on NumPy arrays. It serves both directions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel

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
    embedding = "weights" if config.tied else "embedding"
    yield Weight(embedding, "embedding/embeddings", (config.vocab_size, config.embedding_size))
    for layer in range(config.num_layers):
        input_size = config.hidden_size if layer else config.embedding_size
        ours, theirs, gates = f"lstms/{layer}", f"lstm_{layer + 1}/lstm_cell", 4 * config.hidden_size
        yield Weight(f"{ours}/kernel", f"{theirs}/kernel", (input_size, gates))
        yield Weight(f"{ours}/recurrent_kernel", f"{theirs}/recurrent_kernel", (config.hidden_size, gates))
        yield Weight(f"{ours}/bias", f"{theirs}/bias", (gates,))
    if config.projection_size:
        yield Weight("projection", "projection/kernel", (config.hidden_size, config.projection_size))
    yield Weight("weights", "softmax/kernel", (config.vocab_size, config.softmax_size), transposed=True)
    yield Weight("biases", "softmax/bias", (config.vocab_size,))


def to_keras_weights(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Renames and transposes jaxlm's weights to Keras'. Returns views, not copies.

    Raises:
      InputError: a weight is unknown, missing, of another shape, not float32, or not finite.
    """
    table = list(weight_table(config))
    _check_names(weights, [weight.jaxlm for weight in table])
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
    return {weight.jaxlm: weights[weight.keras].T if weight.transposed else weights[weight.keras] for weight in table}


def model_from_keras_arrays(arrays: Sequence[np.ndarray], dropout: float = 0.0) -> LanguageModel:
    """Makes a `LanguageModel` from a Keras model's weights, and its config from their shapes.

    Args:
      arrays: in Keras' order: embeddings; kernel, recurrent_kernel and bias of each LSTM; the kernel of a
        linear bottleneck, if there is one; Dense kernel and bias. Of any float type. If the embedding
        equals the Dense kernel, the model is tied.
      dropout: rate for the config.

    Raises:
      InputError: the shapes are not those of Embedding -> LSTM stack -> Dense, or a weight is not finite.
    """
    config = config_from_shapes([array.shape for array in arrays])
    config = dataclasses.replace(config, tied=_are_tied(arrays[0], arrays[-2]), dropout=dropout)
    names = [weight.keras for weight in weight_table(config)]
    named = {name: np.asarray(array, np.float32) for name, array in zip(names, arrays, strict=True)}
    return model_from_weights(from_keras_weights(named, config), config)


def config_from_shapes(shapes: Sequence[tuple[int, ...]]) -> ModelConfig:
    """Returns a model's config, read from the shapes of its weights in Keras' order.

    Raises:
      InputError: the shapes are not those of Embedding -> LSTM stack -> Dense.
    """
    if len(shapes) < 6 or len(shapes) % 3 == 2 or any(len(shapes[i]) != 2 for i in (0, 2, -2)):
        raise InputError(f"The weights are not those of Embedding -> LSTM -> Dense. Received shapes: {shapes}.")
    vocab_size, embedding_size = map(int, shapes[0])
    if shapes[-1] != (vocab_size,):
        raise InputError(
            f"The Dense layer must have a unit for each of the {vocab_size} words of the embedding."
            f" Received a bias of shape {shapes[-1]}."
        )
    return ModelConfig(
        vocab_size,
        embedding_size,
        hidden_size=int(shapes[2][0]),
        num_layers=len(shapes) // 3 - 1,
        projection_size=int(shapes[-3][1]) if len(shapes) % 3 else 0,
    )


def language_model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """Returns a model's weights by their jaxlm names, such as "lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0]
    return {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def model_from_weights(weights: Mapping[str, np.ndarray], config: ModelConfig) -> LanguageModel:
    """The inverse of `language_model_weights`. Copies each array once."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0))), ...)
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


def leaf_name(path: tuple) -> str:
    """Returns a name such as "lstms/0/kernel" for the path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


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
        raise InputError(f"Invalid weight {name}: it has NaN or infinite values. The training diverged; train again.")
