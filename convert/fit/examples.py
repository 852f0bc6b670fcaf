"""Batches of examples, read and checked: ids, labels, weights and masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import keras
import numpy as np

from convert.fit.inputs import integer_ids
from convert.fit.network import Network
from convert.fit.sources import Examples
from jaxlm.errors import InputError, require
from jaxlm.token_ids import check_ids

LENGTH_STEP = 16  # lengths are rounded up to a multiple if they vary, since each one compiles the step again


class Labels(NamedTuple):
    """The labels of a model and its loss."""

    vocab_size: int
    last_only: bool  # one label for a sequence
    mask_zero: bool
    ignore_class: int | None = None
    reduction: str | None = "auto"  # in Keras' words
    allows_empty: bool = True  # sequences of padding alone


class ReadBatch(NamedTuple):
    """A batch of examples, read and checked."""

    ids: tuple[np.ndarray, ...]  # of each lookup, int32
    features: Any  # the body's other inputs, and masks
    labels: np.ndarray  # [B, P] int32, P being the outputs of an example
    weights: np.ndarray  # [B, P] float32, `sample_weight`
    mask: np.ndarray  # [B, P] bool, the outputs that count
    valid: np.ndarray  # [B, P] bool, those of them whose label counts
    length: int  # of the first input


class Shape(NamedTuple):
    """Counts and sizes from one pass over the examples."""

    counts: np.ndarray  # [V] int64, how often each id is a label
    num_batches: int
    batch_size: int  # the largest
    sequence_length: int  # the largest, rounded up if lengths vary
    is_regular: bool  # whether all batches have the same shape
    is_masked: bool  # whether there is padding in them
    ids: np.ndarray  # [N] int32, all that are read, one sequence after the other; empty if not needed


@dataclass
class Passes:
    """Passes over examples, from which each epoch takes its steps.

    Args:
      examples: to read.
      shape: of their batches; it grows with batches that are larger.
      steps: of an epoch; None for a whole pass.
      continues: whether an epoch continues where the last one stopped, and does not begin a pass.
    """

    examples: Examples
    shape: Shape
    steps: int | None
    continues: bool = True
    iterator: Iterator[tuple[Any, ...]] = iter(())

    def epoch(self, seed: tuple[int, int] | None) -> Iterator[tuple[Any, ...]]:
        """Yields the batches of an epoch, fewer than `steps` if a pass ends.

        Raises:
          InputError: there are no more batches.
        """
        self.examples.on_begin()
        if self.steps is None or not self.continues:
            self.iterator = iter(())
        first = next(self.iterator, None)
        if first is None:  # a new pass
            self.iterator = self.examples.batches(seed)
            first = next(self.iterator, None)
        if first is None:
            advice = "Give fewer epochs or steps, or a generator that does not end."
            raise InputError(f"Invalid `{self.examples.name}`: expected batches in each epoch. It has ended. {advice}")
        yield from islice(chain((first,), self.iterator), self.steps)
        self.examples.on_end()


def scan(
    examples: Examples, network: Network, labels: Labels, steps: int | None = None, keep_ids: bool = False
) -> Shape:
    """Reads the examples once, or the first ones of an endless stream: checks them and counts their labels.

    Args:
      examples: to read.
      network: the model.
      labels: of the model.
      steps: batches to read if there is no end to them.
      keep_ids: whether to return the ids.

    Raises:
      InputError: an id or a shape does not fit the model, or there are no examples.
    """
    counts, shapes, ids, is_masked = np.zeros(labels.vocab_size, np.int64), [], [], False
    for batch in examples.first(steps):
        found = read(batch, network, labels, examples.name)
        counts += np.bincount(found.labels[found.valid], minlength=labels.vocab_size)
        shapes.append((len(found.labels), found.length))
        is_masked |= labels.mask_zero and not np.all(found.ids[0])
        if keep_ids:
            x = found.ids[0]
            ids.append(x[x != 0] if labels.mask_zero else x.ravel())
    require(bool(shapes), examples.name, "at least one example", "none")
    sizes, lengths = zip(*shapes, strict=True)
    length = max(lengths)
    length = length if length == min(lengths) else -(-length // LENGTH_STEP) * LENGTH_STEP
    all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    return Shape(counts, len(sizes), max(sizes), length, len(set(shapes)) == 1, is_masked, all_ids)


def read(batch: Sequence[Any], network: Network, labels: Labels, name: str) -> ReadBatch:
    """Reads a batch of examples: inputs, an array or a nesting of arrays, labels and maybe weights.

    Raises:
      InputError: a shape or an id does not fit the model.
    """
    inputs = _in_order(batch[0], network.input_names)
    count = len(network.input_names)
    expected = (
        "one array, or a dict with one" if count == 1 else f"{count} arrays, or a dict with {network.input_names}"
    )
    require(len(inputs) == count, name, expected, f"{len(inputs)} arrays")
    sizes = [len(each) for each in (*inputs, batch[1])]
    require(len(set(sizes)) == 1, name, "as many examples as `y`", sizes)
    ids, features = network.prepare(inputs, name)
    y = class_ids(batch[1], network.vocab_size, network.last_only)
    outputs = network.num_outputs(inputs)
    expected = f"labels of shape [N{'' if network.last_only else ', T'}], integer or one-hot, for ids of shape [N, T]"
    require(outputs in (None, y.shape[1]), "y", expected, batch[1].shape)
    mask = network.mask(ids, features)
    mask = np.ones(y.shape, bool) if mask is None else np.reshape(mask, y.shape)
    valid = mask if labels.ignore_class is None else mask & (y != labels.ignore_class)
    check_ids("y", y[valid], network.vocab_size)
    weights = np.ones(y.shape, np.float32)
    if len(batch) == 3:
        given = batch[2].astype(np.float32).reshape(len(batch[2]), -1)
        require(given.shape in (y.shape, (len(y), 1)), "sample_weight", f"shape {y.shape} or [N]", given.shape)
        weights = weights * given
    return ReadBatch(ids, features, y, weights, mask, valid, inputs[0].shape[1] if inputs[0].ndim > 1 else 1)


def _in_order(x: Any, names: Sequence[str]) -> list[np.ndarray]:
    """Returns a model's inputs in its order; Keras takes those of a dict by name."""
    is_named = isinstance(x, dict) and set(names) <= x.keys()
    return [x[name] for name in names] if is_named else keras.tree.flatten(x)


def class_ids(y: np.ndarray, vocab_size: int, last_only: bool) -> np.ndarray:
    """Returns integer labels `[B, P]` of integer labels `[B]`, `[B, P]` or `[B, P, 1]`, or of one-hot ones."""
    if y.ndim > 1 and y.shape[-1] == vocab_size and (last_only or y.ndim > 2) and vocab_size > 1:
        found = y.argmax(axis=-1)
        hot = np.take_along_axis(y, found[..., None], axis=-1)[..., 0]
        right = bool(np.all(hot == 1) and np.all(np.count_nonzero(y, axis=-1) == 1))
        require(right, "y", "integer labels, or one-hot ones", "rows that are not one-hot")
        return found.astype(np.int32).reshape(len(y), -1)
    return integer_ids(y.reshape(len(y), -1), "y")
