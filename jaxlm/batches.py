"""Batches of training and evaluation text. A training batch is a pure function of the step."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import TrainConfig
from jaxlm.errors import InputError
from jaxlm.token_ids import Ids


class Batch(NamedTuple):
    """Words and the words that follow them."""

    inputs: Ids  # [batch_size, sequence_length]
    labels: Ids  # [batch_size, sequence_length]
    starts_epoch: bool | jax.Array = False  # whether the LSTM starts from the zero state
    positions: Ids | None = None  # [batch_size, P] time steps that the labels [batch_size, P] belong to; None for all
    weights: np.ndarray | jax.Array | None = None  # of the labels; the loss is the weighted sum, None for the mean


def outputs_with_labels(batch: Batch, outputs: jax.Array) -> jax.Array:
    """Returns the outputs `[batch_size, P, D]` that have labels, of all `[batch_size, sequence_length, D]`."""
    if batch.positions is None:
        return outputs
    return jnp.take_along_axis(outputs, jnp.asarray(batch.positions)[:, :, None], axis=1)


def reduce_losses(batch: Batch, losses: jax.Array) -> jax.Array:
    """Returns the loss of a batch: the mean, or the weighted sum, of the losses of its labels, in any shape."""
    return losses.mean() if batch.weights is None else (jnp.ravel(batch.weights) * losses.ravel()).sum()


def batches_per_epoch(num_tokens: int, batch_size: int, sequence_length: int) -> int:
    """Returns the number of whole batches in one pass over the text.

    Raises:
      InputError: the text is too short for one batch.
    """
    batches = (num_tokens - 1) // batch_size // sequence_length
    if not batches:
        raise InputError(
            f"{num_tokens} words are too few for a batch of {batch_size} streams of {sequence_length} words;"
            " use a smaller `batch_size` or `sequence_length`."
        )
    return batches


def train_batch(tokens: np.ndarray, step: int, batch_size: int, sequence_length: int) -> Batch:
    """Returns the batch of a step, from 0: the text is cut into contiguous streams, read side by side.

    Row b of batch n + 1 continues row b of batch n. Each epoch starts over.
    """
    index = step % batches_per_epoch(tokens.size, batch_size, sequence_length)
    starts = np.arange(batch_size) * ((tokens.size - 1) // batch_size) + index * sequence_length
    words = tokens[starts[:, None] + np.arange(sequence_length + 1)]
    return Batch(words[:, :-1], words[:, 1:], index == 0)


def train_batches(tokens: np.ndarray, config: TrainConfig, num_steps: int, first_step: int = 0) -> Iterator[Batch]:
    """Yields the batches of steps `first_step` to `num_steps` - 1, over as many epochs as that takes.

    Args:
      tokens: `[N]` integer ids, such as `Corpus.train`.
      config: its `batch_size` and `sequence_length` are used.
      num_steps: number of steps of the whole training.
      first_step: steps already done.

    Raises:
      InputError: the text is too short for one batch.
    """
    for step in range(first_step, num_steps):
        yield train_batch(tokens, step, config.batch_size, config.sequence_length)


def evaluation_batches(tokens: Ids, batch_size: int, sequence_length: int, max_tokens: int = 0) -> Iterator[Batch]:
    """Yields batches in which each word but the first is a label of weight 1 exactly once; all others have weight 0.

    Args:
      tokens: `[N]` ids.
      batch_size: number of contiguous streams.
      sequence_length: time steps of a batch.
      max_tokens: maximum number of labels, rounded up to whole rows; 0 for all. They are the beginnings of the
        streams, which lie evenly over the text.
    """
    labels = tokens.size - 1
    stream = -(-labels // batch_size)
    length = min(stream, -(-max_tokens // batch_size)) if max_tokens else stream
    for start in range(0, length, sequence_length):
        position = start + np.arange(sequence_length)
        index = np.arange(batch_size)[:, None] * stream + position
        mask = (position < length)[None, :] & (index < labels)
        index = np.minimum(index, labels - 1)
        yield Batch(tokens[index], tokens[index + 1], weights=mask.astype(np.float32))
