"""Batches for jaxlm from batches of examples: weighted as Keras' loss is, and filled up for jaxlm's own LSTM."""

from typing import Any

import keras
import numpy as np

from convert.fit.examples import LENGTH_STEP, Labels, ReadBatch, Shape
from convert.fit.network import Network
from jaxlm.data.batches import Batch
from jaxlm.errors import require


def to_batch(
    found: ReadBatch, network: Network, labels: Labels, shape: Shape, name: str, class_weights: np.ndarray | None = None
) -> Batch:
    """Makes a batch for jaxlm from a batch of examples.

    Args:
      found: the examples.
      network: the model.
      labels: of the model.
      shape: the sizes to fill up to, for jaxlm's own LSTM; a Keras body takes any size.
      name: of the argument, for errors.
      class_weights: `[V]`, the weight of the labels of each class; None for 1.

    Returns:
      The batch, weighted as Keras' loss is, with the compiled reduction.
    """
    if not network.is_chain:
        weights = as_keras_weights(found, labels, class_weights, found.labels.size)
        return Batch(found.ids, np.where(found.valid, found.labels, 0), True, None, weights, found.features)
    size = shape.batch_size * (1 if labels.last_only else shape.sequence_length)  # which the loss is the mean of
    return _packed(found, labels, shape, name, as_keras_weights(found, labels, class_weights, size))


def _packed(found: ReadBatch, labels: Labels, shape: Shape, name: str, weights: np.ndarray) -> Batch:
    """Makes a batch for jaxlm's own LSTM, which takes no mask.

    Masked ids are moved to the end of their sequence, after all outputs that count. A Keras LSTM skips them, so the
    results are equal. The batch is filled up with its own ids and labels, of weight 0, which touch no other row of a
    table.
    """
    (x,), y = found.ids, np.where(found.valid, found.labels, 0)
    positions = np.full((len(x), 1), x.shape[1] - 1, np.int32) if labels.last_only else None
    if labels.mask_zero and not np.all(x != 0):
        order = _order(x)
        x = np.take_along_axis(x, order, axis=1)
        if positions is not None:
            positions = (x != 0).sum(axis=1, keepdims=True, dtype=np.int32) - 1  # -1, for zeros, if all is padding
            kept = labels.allows_empty or bool(positions.min() >= 0)
            require(kept, name, "a word in each sequence, for Dense layers between LSTM and softmax", "padding alone")
        else:
            y, weights = (np.take_along_axis(array, order, axis=1) for array in (y, weights))
        x = np.where(x == 0, x[:, :1], x)
    if np.any(weights):
        y = np.where(weights != 0, y, y[weights != 0][0])
    x, y, weights, positions = _fill(x, y, weights, positions, shape)
    return Batch(x, y, True, positions, weights)


def _order(x: np.ndarray) -> np.ndarray:
    """Returns the positions of ids `[B, T]` in the order of `_packed`: masked ones last."""
    return np.argsort(x == 0, axis=1, kind="stable")


def unpacked(values: np.ndarray, batch: Batch, found: ReadBatch, labels: Labels) -> np.ndarray:
    """Returns values `[B, P]` of the labels of examples, given those `[N]` of the labels of their batch."""
    rows, columns = found.labels.shape
    packed = values[: batch.labels.size].reshape(batch.labels.shape)[:rows, :columns]
    if labels.last_only or not labels.mask_zero:
        return packed
    result = np.empty_like(packed)
    np.put_along_axis(result, _order(found.ids[0]), packed, axis=1)
    return result


def as_keras_weights(found: ReadBatch, labels: Labels, class_weights: np.ndarray | None, size: int) -> np.ndarray:
    """Returns float32 weights that make the mean over `size` outputs Keras' loss, with the compiled reduction."""
    weights = found.weights * found.valid
    if class_weights is not None:
        weights = weights * class_weights[np.where(found.valid, found.labels, 0)]
    divisor = divisor_of(labels.reduction, float(weights.sum()), int(found.valid.sum()))
    return (weights * (size / (divisor or 1.0))).astype(np.float32)


def grown(shape: Shape, batch: tuple[Any, ...]) -> Shape:
    """Returns the shape of batches, made larger if a batch does not fit."""
    found = np.shape(keras.tree.flatten(batch[0])[0])
    length = found[1] if len(found) > 1 else 1
    if found[0] <= shape.batch_size and length <= shape.sequence_length:
        return shape
    length = max(shape.sequence_length, -(-length // LENGTH_STEP) * LENGTH_STEP)
    return shape._replace(batch_size=max(shape.batch_size, found[0]), sequence_length=length)


def divisor_of(reduction: str | None, total: float, count: int) -> float:
    """Returns the number that Keras divides the sum of the weighted losses by."""
    if reduction == "sum":
        return 1.0
    return total if reduction == "mean_with_sample_weight" else float(count)


def _fill(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, positions: np.ndarray | None, shape: Shape
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Fills a batch up to full size by repeating its ids, with weights of 0."""
    rows = (0, shape.batch_size - len(x))
    columns = (0, shape.sequence_length - x.shape[1])
    label_columns = columns if positions is None else (0, 0)
    x = np.pad(x, (rows, columns), mode="wrap")
    y = np.pad(y, (rows, label_columns), mode="wrap")
    weights = np.pad(weights, (rows, label_columns))
    return x, y, weights, None if positions is None else np.pad(positions, (rows, (0, 0)), mode="wrap")
