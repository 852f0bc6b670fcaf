"""Batches for a body of Keras: any inputs, masks that the body carries, and no filling up."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from convert.fit.examples import Labels, as_keras_weights, class_ids
from convert.fit.network import Network
from jaxlm.data.batches import Batch
from jaxlm.errors import require
from jaxlm.token_ids import check_ids

Read = tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray]


def read_any(batch: Sequence[Any], network: Network, labels: Labels, name: str) -> Read:
    """Reads a batch of examples.

    Returns:
      the model's inputs; labels `[B, P]` int32, P being the outputs of an example; weights `[B, P]` float32; and which
      labels count, `[B, P]` bool.

    Raises:
      InputError: the inputs or the labels do not fit the model.
    """
    inputs = tuple(np.asarray(each) for each in keras.tree.flatten(batch[0]))
    expected = f"{network.num_inputs} inputs with as many examples as `y`"
    sizes = [len(each) for each in inputs] + [len(np.asarray(batch[1]))]
    require(len(inputs) == network.num_inputs and len(set(sizes)) == 1, name, expected, sizes)
    y = class_ids(np.asarray(batch[1]), network.vocab_size, network.last_only)
    valid = np.ones(y.shape, bool) if labels.ignore_class is None else y != labels.ignore_class
    mask = network.mask(inputs)
    if mask is not None:
        valid &= np.reshape(mask, y.shape)
    check_ids("y", y[valid], network.vocab_size)
    weights = np.ones(y.shape, np.float32)
    if len(batch) == 3 and batch[2] is not None:
        given = np.asarray(batch[2], np.float32)
        given = given.reshape(len(given), -1)
        require(given.shape in (y.shape, (len(y), 1)), "sample_weight", f"shape {y.shape} or [N]", given.shape)
        weights = weights * given
    return inputs, y, weights * valid, valid


def to_any_batch(
    batch: Sequence[Any], network: Network, labels: Labels, name: str, class_weights: np.ndarray | None = None
) -> Batch:
    """Makes a batch for jaxlm from one of examples, weighted as Keras' loss is; see `to_batch`."""
    inputs, y, weights, valid = read_any(batch, network, labels, name)
    weights = as_keras_weights(weights, y, valid, labels, class_weights, y.size)
    ids, features = network.prepare(inputs)
    return Batch(ids, np.where(valid, y, 0), True, None, weights, features)
