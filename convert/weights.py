"""The one table of weights, jaxlm <-> Keras, on numpy arrays; it serves both directions."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.config import InputError, ModelConfig


class Weight(NamedTuple):
    """One weight: its name in jaxlm, its path in Keras, and how the two lie."""

    jaxlm: str
    keras: str
    shape: tuple[int, ...]  # in jaxlm
    transposed: bool = False  # in Keras


def weight_table(config: ModelConfig) -> Iterator[Weight]:
    """Yields every weight of a model.

    Gates are in the order i, f, g, o on both sides (Keras writes c for g) with a single bias, so LSTM
    weights copy as they are; only the softmax rows `[V, D]` become a Dense kernel `[D, V]`.
    """
    yield Weight("embedding", "embedding/embeddings", (config.vocab_size, config.embedding_size))
    for layer in range(config.num_layers):
        input_size = config.hidden_size if layer else config.embedding_size
        ours, theirs, gates = f"lstms/{layer}", f"lstm_{layer + 1}/lstm_cell", 4 * config.hidden_size
        yield Weight(f"{ours}/kernel", f"{theirs}/kernel", (input_size, gates))
        yield Weight(f"{ours}/recurrent_kernel", f"{theirs}/recurrent_kernel", (config.hidden_size, gates))
        yield Weight(f"{ours}/bias", f"{theirs}/bias", (gates,))
    yield Weight("weights", "softmax/kernel", (config.vocab_size, config.hidden_size), transposed=True)
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
        shape = weight.shape[::-1] if weight.transposed else weight.shape
        _check_array(weight.keras, weights[weight.keras], shape)
    return {weight.jaxlm: weights[weight.keras].T if weight.transposed else weights[weight.keras] for weight in table}


def _check_names(weights: Mapping[str, np.ndarray], expected: list[str]) -> None:
    unknown, missing = sorted(set(weights) - set(expected)), sorted(set(expected) - set(weights))
    if unknown or missing:
        raise InputError(f"The weights do not fit the model: unknown {unknown}, missing {missing}.")


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"Invalid weight {name}: expected float32 {shape}. Received: {array.dtype} {array.shape}.")
    if not np.isfinite(array.sum(dtype=np.float64)):  # as a sum: no array of flags beside a large table
        raise InputError(f"Invalid weight {name}: it has NaN or infinite values; the training diverged, train anew.")
