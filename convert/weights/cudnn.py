"""Converts the weights of a CuDNNLSTM of Keras 2 to those of the equivalent LSTM."""

from collections.abc import Sequence

import numpy as np


def equal_shapes(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns the shapes of a model's weights, with each CuDNNLSTM as the equivalent LSTM."""
    positions = _positions(shapes)
    return [(shape[0] // 2,) if i in positions else tuple(shape) for i, shape in enumerate(shapes)]


def as_lstm_arrays(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns a model's weights, with each CuDNNLSTM as the equivalent LSTM.

    cuDNN stores the kernel of each gate transposed, and two biases, of which only the sum matters.

    References:
      `preprocess_weights_for_loading` of Keras 2.
    """
    result = list(arrays)
    for i in _positions([array.shape for array in arrays]):
        kernel, recurrent_kernel, biases = result[i - 2 : i + 1]
        gates = [gate.T.reshape(gate.shape, order="F") for gate in np.split(kernel, 4, axis=1)]
        result[i - 2] = np.concatenate(gates, axis=1)
        result[i - 1] = np.concatenate([gate.T for gate in np.split(recurrent_kernel, 4, axis=1)], axis=1)
        result[i] = np.add(*np.split(biases, 2))
    return result


def _positions(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Returns the index of the two biases of each CuDNNLSTM."""
    return [
        i
        for i in range(2, len(shapes))
        if len(shapes[i]) == 1 and len(shapes[i - 1]) == 2 and shapes[i][0] == 2 * shapes[i - 1][1]
        if shapes[i - 1][1] == 4 * shapes[i - 1][0] and len(shapes[i - 2]) == 2
    ]
