"""Batches for the LSTM chain from batches of examples: checked, weighted as Keras does, and filled up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from convert.fit.sources import Examples
from jaxlm.data.batches import Batch
from jaxlm.errors import require
from jaxlm.token_ids import check_ids

LENGTH_STEP = 16  # lengths are rounded up to a multiple if they vary, since each one compiles the step again


class Labels(NamedTuple):
    """What an example means for a model."""

    vocab_size: int
    last_only: bool  # one label for a sequence
    mask_zero: bool
    ignore_class: int | None = None
    reduction: str | None = "auto"  # in Keras' words
    allows_empty: bool = True  # sequences of padding alone


class Shape(NamedTuple):
    """What one pass over examples shows."""

    counts: np.ndarray  # [V] int64, how often each id is a label
    num_batches: int
    batch_size: int  # the largest
    sequence_length: int  # the largest, rounded up if lengths vary
    is_regular: bool  # whether all batches have the same shape
    is_masked: bool  # whether there is padding in them
    ids: np.ndarray  # [N] int32, all that are read, one sequence after the other; empty unless asked for


def scan(
    examples: Examples,
    labels: Labels,
    read_batch: Callable[..., Any],
    steps: int | None = None,
    keep_ids: bool = False,
) -> Shape:
    """Reads the examples once, or the first ones of an endless stream: checks them and counts their labels.

    Args:
      examples: to read.
      labels: what they mean.
      read_batch: from a batch of examples to inputs, labels, weights, and which labels count.
      steps: batches to read if there is no end to them.
      keep_ids: whether to return the ids.

    Raises:
      InputError: an id or a shape does not fit the model, or there are no examples.
    """
    counts, shapes, ids, is_masked = np.zeros(labels.vocab_size, np.int64), [], [], False
    for batch in examples.first(steps):
        inputs, y, _, valid = read_batch(batch, examples.name)
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        np.add.at(counts, y[valid], 1)
        shapes.append((len(x), x.shape[1] if x.ndim > 1 else 1))
        is_masked |= labels.mask_zero and not np.all(x)
        if keep_ids:
            ids.append(x[x != 0] if labels.mask_zero else x.ravel())
    require(bool(shapes), examples.name, "at least one example", "none")
    sizes, lengths = zip(*shapes, strict=True)
    length = max(lengths)
    length = length if length == min(lengths) else -(-length // LENGTH_STEP) * LENGTH_STEP
    all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    return Shape(counts, len(sizes), max(sizes), length, len(set(shapes)) == 1, is_masked, all_ids)


def read(
    batch: tuple[np.ndarray, ...], labels: Labels, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads a batch of examples.

    Returns:
      ids `[B, T]` int32; labels `[B, P]` int32, with P = 1 or T; weights `[B, P]` float32; and which labels count,
      `[B, P]` bool.

    Raises:
      InputError: a shape or an id does not fit the model.
    """
    x = _ids(_only(batch[0], name), name, labels.vocab_size)
    require(x.ndim == 2 and x.size > 0, name, "ids of shape [N, T]", x.shape)
    shape = (len(x), 1 if labels.last_only else x.shape[1])
    y = _class_ids(_only(batch[1], "y"), shape, labels)
    valid = np.ones(shape, bool) if labels.ignore_class is None else y != labels.ignore_class
    if labels.mask_zero and not labels.last_only:
        valid &= x != 0
    _ids(y[valid], "y", labels.vocab_size)
    weights = np.ones(shape, np.float32)
    if len(batch) == 3:
        given = np.asarray(batch[2], np.float32)
        given = given[:, None] if given.ndim == 1 else given
        require(given.shape in (shape, (len(x), 1)), "sample_weight", f"shape {shape} or [N]", given.shape)
        weights = weights * given
    return x, y, weights * valid, valid


def _only(structure: Any, name: str) -> np.ndarray:
    """Returns the array of a dict, list or tuple that holds a single one."""
    parts = keras.tree.flatten(structure)
    require(len(parts) == 1, name, "one array, or a dict with one", f"{len(parts)} arrays")
    return np.asarray(parts[0])


def class_ids(y: np.ndarray, vocab_size: int, last_only: bool) -> np.ndarray:
    """Returns integer labels `[B, P]` of integer labels `[B]`, `[B, P]` or `[B, P, 1]`, or of one-hot ones."""
    if y.ndim > 1 and y.shape[-1] == vocab_size and (last_only or y.ndim > 2) and vocab_size > 1:
        found = y.argmax(axis=-1)
        hot = np.take_along_axis(y, found[..., None], axis=-1)[..., 0]
        right = bool(np.all(hot == 1) and np.all(np.count_nonzero(y, axis=-1) == 1))
        require(right, "y", "integer labels, or one-hot ones", "rows that are not one-hot")
        return found.astype(np.int32).reshape(len(y), -1)
    return integer_ids(y.reshape(len(y), -1), "y")


def _class_ids(y: np.ndarray, shape: tuple[int, int], labels: Labels) -> np.ndarray:
    """Returns integer labels `[B, P]`, also of one-hot ones."""
    expected = f"labels of shape [N{'' if labels.last_only else ', T'}], integer or one-hot, for ids of shape [N, T]"
    one_hot = y.shape == (*shape, labels.vocab_size) or (labels.last_only and y.shape == (shape[0], labels.vocab_size))
    require(one_hot or (y.size == shape[0] * shape[1] and y.shape[0] == shape[0]), "y", expected, y.shape)
    return class_ids(y, labels.vocab_size, labels.last_only)


def integer_ids(values: np.ndarray, name: str) -> np.ndarray:
    """Returns ids of any numeric type as int32, after checking that none of them is cut."""
    if values.dtype.kind == "f":
        require(bool(np.all(values == np.rint(values))), name, "integer ids", f"{values.dtype} with fractions")
        require(bool(np.all(np.isfinite(values))), name, "finite ids", "an infinite one")
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    require(-(2**31) <= lowest and highest < 2**31, name, "ids below 2**31", f"{lowest} to {highest}")
    return values.astype(np.int32)


def _ids(values: np.ndarray, name: str, vocab_size: int) -> np.ndarray:
    values = integer_ids(np.asarray(values), name)
    check_ids(name, values.ravel(), vocab_size)
    return values


def to_batch(
    batch: tuple[np.ndarray, ...], labels: Labels, shape: Shape, name: str, class_weights: np.ndarray | None = None
) -> Batch:
    """Makes a batch for jaxlm from one of examples.

    Masked ids are moved to the end of their sequence, where no state that counts has read them: a Keras LSTM passes
    over them, so both give the same. What fills the batch up repeats ids and labels that are in it, with weight 0,
    so that no other row of a table is touched.

    Args:
      batch: ids, labels and maybe weights.
      labels: what they mean.
      shape: the sizes to fill up to.
      name: of the argument, for errors.
      class_weights: `[V]`, what a label of each class counts; None for 1.

    Returns:
      The batch, weighted as Keras' loss is, with the compiled reduction.
    """
    x, y, weights, valid = read(batch, labels, name)
    size = shape.batch_size * (1 if labels.last_only else shape.sequence_length)  # which the loss is the mean of
    weights = as_keras_weights(weights, y, valid, labels, class_weights, size)
    positions = np.full((len(x), 1), x.shape[1] - 1, np.int32) if labels.last_only else None
    if labels.mask_zero and not np.all(x != 0):
        order = np.argsort(x == 0, axis=1, kind="stable")
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


def as_keras_weights(
    weights: np.ndarray,
    y: np.ndarray,
    valid: np.ndarray,
    labels: Labels,
    class_weights: np.ndarray | None,
    size: int,
) -> np.ndarray:
    """Returns float32 weights with which the mean over `size` outputs is Keras' loss, with the compiled reduction."""
    if class_weights is not None:
        weights = weights * class_weights[np.where(valid, y, 0)]
    divisor = divisor_of(labels.reduction, float(weights.sum()), int(valid.sum()))
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
