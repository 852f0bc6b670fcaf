"""Batches of training and evaluation text. A training batch is a pure function of the step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxlm.config import TrainConfig
from jaxlm.config_checks import require_integer
from jaxlm.errors import InputError, require
from jaxlm.parallel.collectives import all_gather, all_gather_invariant, psum
from jaxlm.parallel.mesh import Mesh, data_axes, mesh_shape, pad, padded_streams, place, stream_spec, vocab_axes
from jaxlm.token_ids import Ids, as_int32


class Batch(NamedTuple):
    """Words and the words that follow them."""

    inputs: Any  # [batch_size, sequence_length] ids; a tuple of id arrays [batch_size, ...] for a body with several
    labels: Ids  # [batch_size, sequence_length]
    starts_epoch: bool | np.ndarray | jax.Array = False  # whether the LSTM starts from the zero state
    positions: Ids | None = None  # [batch_size, P] time steps of the labels [batch_size, P], -1 for zeros; None for all
    weights: np.ndarray | jax.Array | None = None  # of the labels; the loss is the mean of weight * loss
    features: Any = ()  # other inputs of the body, arrays [batch_size, ...]


def outputs_with_labels(batch: Batch, outputs: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Returns the outputs `[N, D]` that have labels, of all `[batch_size, sequence_length, D]`.

    On a mesh, `batch` and `outputs` are the part of a device, and the result is that of all devices along `vocab`.
    """
    if batch.positions is not None:
        positions = jnp.asarray(batch.positions)[:, :, None]
        found = jnp.take_along_axis(outputs, jnp.maximum(positions, 0), axis=1)
        outputs = jnp.where(positions < 0, jnp.zeros_like(found), found)
    return all_gather(outputs.reshape(-1, outputs.shape[-1]), vocab_axes(mesh))


def reduce_losses(batch: Batch, losses: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Returns the loss of a batch: the mean of weight * loss over its labels, in any shape; without weights they are 1.

    On a mesh, `batch` is the part of a device, and `losses` those of all devices along `vocab`.
    """
    if batch.weights is not None:
        losses = all_gather_invariant(jnp.ravel(batch.weights), vocab_axes(mesh)) * losses.ravel()
    return psum(losses.mean(), data_axes(mesh)) / mesh_shape(mesh)[0]


def shard_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Copies a batch onto a mesh, padded with streams of weight 0 to the same number per device."""
    if mesh is None and isinstance(batch.starts_epoch, jax.Array):
        return batch  # to read it would wait for the device
    batch = batch._replace(starts_epoch=np.asarray(batch.starts_epoch, bool))
    if mesh is None:
        return batch
    return jax.tree.map(lambda leaf: place_streams(leaf, mesh) if leaf.ndim else leaf, weighted(batch, mesh))


def weighted(batch: Batch, mesh: Mesh | None) -> Batch:
    """Scales the weights to keep the mean if a mesh adds streams of weight 0."""
    streams = len(batch.labels)
    if padded_streams(streams, mesh) == streams:
        return batch
    weights = np.ones(batch.labels.shape, np.float32) if batch.weights is None else np.asarray(batch.weights)
    return batch._replace(weights=weights * np.float32(padded_streams(streams, mesh) / streams))


def place_streams(array: Any, mesh: Mesh | None) -> Any:
    """Copies an array with one row per stream onto a mesh, padded with zeros to the same number per device."""
    if mesh is None or (isinstance(array, jax.Array) and array.sharding == NamedSharding(mesh, stream_spec(mesh))):
        return array
    return place(pad(np.asarray(array), padded_streams(len(array), mesh)), mesh, stream_spec(mesh))


def local_streams(batch_size: int, mesh: Mesh | None) -> np.ndarray:
    """Returns the numbers of the streams on this process' devices."""
    numbers = np.arange(batch_size)
    if mesh is None:
        return numbers
    sharding, shape = NamedSharding(mesh, stream_spec(mesh)), (padded_streams(batch_size, mesh),)
    slices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([numbers[each] for each in slices]))


def batch_specs(batch: Batch, mesh: Mesh | None) -> Batch:
    """Returns a batch with the `PartitionSpec` of each array instead of the array."""
    return jax.tree.map(lambda leaf: stream_spec(mesh) if jnp.ndim(leaf) else PartitionSpec(), batch)


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


def train_batch(tokens: np.ndarray, step: int, config: TrainConfig, streams: np.ndarray | None = None) -> Batch:
    """Returns the batch of a step, from 0: the text is cut into contiguous streams, read side by side.

    Row b of batch n + 1 continues row b of batch n. Each epoch starts over; with `random_offsets`, all of its batches
    are moved by the same number of words. Only the rows `streams` are read, as from `local_streams`; the others are
    zeros.
    """
    epoch, index = divmod(step, batches_per_epoch(tokens.size, config.batch_size, config.sequence_length))
    streams = np.arange(config.batch_size) if streams is None else streams
    starts = streams * ((tokens.size - 1) // config.batch_size) + index * config.sequence_length
    positions = (starts + _offset(config, epoch))[:, None] + np.arange(config.sequence_length + 1)
    words = np.zeros((config.batch_size, config.sequence_length + 1), np.int32)
    # a moved batch may go on with the beginning of the text
    words[streams] = as_int32("tokens", tokens[positions % tokens.size])
    return Batch(words[:, :-1], words[:, 1:], index == 0)


def _offset(config: TrainConfig, epoch: int) -> int:
    """Returns the number of words by which the batches of an epoch are moved, below `sequence_length`."""
    if not config.random_offsets:
        return 0
    # NumPy guarantees the numbers of a SeedSequence, and not those of a Generator, in all of its versions
    return int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0]) % config.sequence_length


def train_batches(tokens: ArrayLike, config: TrainConfig, num_steps: int, first_step: int = 0) -> Iterator[Batch]:
    """Returns an iterator over `num_steps` batches, from step `first_step` on, over as many epochs as that takes.

    Args:
      tokens: `[N]` integer ids, such as `Corpus.train`.
      config: its `batch_size`, `sequence_length`, `random_offsets` and `seed` are used.
      num_steps: number of batches.
      first_step: number of steps already done.

    Raises:
      InputError: the text is too short for one batch, or an argument is out of range.
    """
    tokens = np.asarray(tokens)
    fits = tokens.ndim == 1 and tokens.dtype.kind in "iu"
    require(fits, "tokens", "integer ids of shape [N]", f"{tokens.dtype} {tokens.shape}")
    require_integer("num_steps", num_steps, 0)
    require_integer("first_step", first_step, 0)
    return (train_batch(tokens, step, config) for step in range(first_step, first_step + num_steps))


def evaluation_batches(tokens: Ids, batch_size: int, sequence_length: int, max_tokens: int = 0) -> Iterator[Batch]:
    """Yields batches in which each word but the first is a label of weight 1 exactly once; all others have weight 0.

    Args:
      tokens: `[N]` ids.
      batch_size: number of contiguous streams.
      sequence_length: time steps of a batch.
      max_tokens: number of labels, rounded up to a multiple of `batch_size`; 0 for all. They are the beginnings of
        the streams, which are spread evenly over the text.
    """
    labels = tokens.size - 1
    stream = -(-labels // batch_size)
    length = min(stream, -(-max_tokens // batch_size)) if max_tokens else stream
    for start in range(0, length, sequence_length):
        position = start + np.arange(sequence_length)
        index = np.arange(batch_size)[:, None] * stream + position
        mask = (position < length)[None, :] & (index < labels)
        index = np.minimum(index, labels - 1)
        inputs, words = (as_int32("tokens", tokens[each]) for each in (index, index + 1))
        yield Batch(inputs, words, weights=mask.astype(np.float32))
