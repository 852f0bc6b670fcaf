"""The one table of weights, jaxlm <-> Keras, on numpy arrays; it serves both directions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel

ALIGNMENT = 64  # bytes; JAX and TensorFlow take memory as it is that begins at a multiple
CLASS_TABLES = ("embedding", "weights", "biases")  # one row a word, in jaxlm


class Weight(NamedTuple):
    """One weight: its name in jaxlm, its path in Keras, and how the two lie."""

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

    Gates are in the order i, f, g, o on both sides (Keras writes c for g) with a single bias, so LSTM
    weights copy as they are; only the softmax rows `[V, D]` become a Dense kernel `[D, V]`. Tied rows
    go to both places.
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


def to_keras(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Renames and transposes jaxlm's weights to Keras'; views, no copies.

    Raises:
      InputError: a weight is unknown, missing, misshapen, not float32, or not finite; names it.
    """
    table = list(weight_table(config))
    _check_names(weights, [weight.jaxlm for weight in table])
    for weight in table:
        _check_array(weight.jaxlm, weights[weight.jaxlm], weight.shape)
    return {weight.keras: weights[weight.jaxlm].T if weight.transposed else weights[weight.jaxlm] for weight in table}


def from_keras(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `to_keras`, with the same checks."""
    table = list(weight_table(config))
    _check_names(weights, [weight.keras for weight in table])
    for weight in table:
        _check_array(weight.keras, weights[weight.keras], weight.keras_shape)
    if config.tied and not _are_tied(weights["embedding/embeddings"], weights["softmax/kernel"]):
        raise InputError("Invalid weight embedding/embeddings: expected softmax/kernel, transposed; the model is tied.")
    return {weight.jaxlm: weights[weight.keras].T if weight.transposed else weights[weight.keras] for weight in table}


def from_keras_list(arrays: Sequence[np.ndarray], dropout: float = 0.0) -> LanguageModel:
    """Makes a `LanguageModel` of a Keras model's weights; the shapes tell its config.

    Args:
      arrays: as Keras lists them: embeddings, (kernel, recurrent_kernel, bias) of each LSTM, the kernel of
        a linear bottleneck or not, Dense kernel and bias; floating point of any width. Where the
        embedding and the Dense kernel are the same numbers, the model is tied.
      dropout: of the config.

    Raises:
      InputError: they are not those of Embedding -> LSTM stack -> Dense, or not finite.
    """
    config = config_of_shapes([array.shape for array in arrays])
    config = dataclasses.replace(config, tied=_are_tied(arrays[0], arrays[-2]), dropout=dropout)
    names = [weight.keras for weight in weight_table(config)]
    named = {name: np.asarray(array, np.float32) for name, array in zip(names, arrays, strict=True)}
    return language_model(from_keras(named, config), config)


def config_of_shapes(shapes: Sequence[tuple[int, ...]]) -> ModelConfig:
    """Returns the config of a Keras model by the shapes of its weights, as those of `from_keras_list`.

    Raises:
      InputError: they are not those of Embedding -> LSTM stack -> Dense.
    """
    if len(shapes) < 6 or len(shapes) % 3 == 2 or any(len(shapes[i]) != 2 for i in (0, 2, -2)):
        raise InputError(f"The weights are not those of Embedding -> LSTM -> Dense: they have the shapes {shapes}.")
    vocab_size, embedding_size = map(int, shapes[0])
    if shapes[-1] != (vocab_size,):
        raise InputError(
            f"The embedding has {vocab_size} words and the Dense layer {shapes[-1]} units; jaxlm needs as many."
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
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def language_model(weights: Mapping[str, np.ndarray], config: ModelConfig) -> LanguageModel:
    """The inverse of `language_model_weights`; copies each array once."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0))), ...)

    arrays = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.device_put(aligned_copy(weights[jax.tree_util.keystr(path, simple=True, separator="/")])),
        nnx.to_pure_dict(params),
    )
    return nnx.merge(graphdef, arrays)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`numpy.empty` in memory that JAX and TensorFlow take as it is, where they would copy any other."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A contiguous copy in memory of `aligned_empty`."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def reorder_classes(model: LanguageModel, index: np.ndarray) -> LanguageModel:
    """Returns the model whose word i is the word `index[i]` of `model`; index `[V]` is a permutation."""
    graphdef, params = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, jax.device_put(reorder_rows(nnx.to_pure_dict(params), index)))


def reorder_rows(weights: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
    """`reorder_classes` of weights, or of an optimizer's moments, by their jaxlm names."""
    reordered = {}
    for name in CLASS_TABLES:
        if name in weights:
            table = np.asarray(weights[name])
            reordered[name] = aligned_empty(table.shape, table.dtype)
            np.take(table, index, axis=0, out=reordered[name], mode="clip")  # which does without a buffer
    return weights | reordered


def _are_tied(embeddings: np.ndarray, kernel: np.ndarray) -> bool:
    return embeddings.shape == kernel.shape[::-1] and np.array_equal(embeddings, kernel.T)


def _check_names(weights: Mapping[str, np.ndarray], expected: list[str]) -> None:
    unknown, missing = sorted(set(weights) - set(expected)), sorted(set(expected) - set(weights))
    if unknown or missing:
        raise InputError(f"The weights do not fit the model: unknown {unknown}, missing {missing}.")


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"Invalid weight {name}: expected float32 {shape}. Received: {array.dtype} {array.shape}.")
    if not np.isfinite(array.sum(dtype=np.float64)):  # as a sum: no array of flags beside a large table
        raise InputError(f"Invalid weight {name}: it has NaN or infinite values; the training diverged, train anew.")
