"""`train_step`: loss and gradients on the rows that a batch touches, row-sparse updates, everything in place.

`step_in_block` is the same for a batch that lies on the devices already, in a block of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxlm.data.batch_blocks import BatchBlock
from jaxlm.data.batches import Batch, batch_specs, outputs_with_labels, reduce_losses, shard_batch
from jaxlm.errors import require
from jaxlm.matmul import in_float32, product_dtype, product_precision
from jaxlm.model.language_model import merge_params
from jaxlm.model.lstm import Carry
from jaxlm.parallel.collectives import (
    all_gather_invariant,
    as_varying,
    local_gradient,
    local_rows,
    lookup,
    nan_unless_valid,
    on_mesh,
)
from jaxlm.parallel.mesh import Axes, padded_streams, stream_axes, vocab_axes
from jaxlm.row_updates import RowGradient, sum_duplicates
from jaxlm.token_ids import Ids, check_ids
from jaxlm.training.apply_gradients import update
from jaxlm.training.objectives import ExactLoss, Gradient, SampledLoss, exact_loss_of, training_loss_of
from jaxlm.training.state import TrainState, state_specs

EVERYWHERE = PartitionSpec()


def train_step(
    state: TrainState, batch: Batch | tuple[Ids, Ids], learning_rate: jax.typing.ArrayLike
) -> tuple[TrainState, jax.Array]:
    """Runs one training step: loss and gradients on the touched rows, clipping, update in place.

    A step whose loss or gradient is not finite changes nothing but the counters of `state`: `step` and `skipped`.
    Ids on the host are checked; an id out of range in a JAX array makes the loss NaN and so skips the step.
    With loss "full" the gradient of the softmax rows is dense. Another learning rate does not compile anew.

    Args:
      state: donated; use only the returned one.
      batch: a `Batch`, or a pair of inputs and labels, each `[batch_size, sequence_length]` integer ids, where each
        label is the word after the input. The LSTM state carries over from the last batch, unless the batch
        says `starts_epoch`. Its `positions` and `weights` say which outputs have labels, and what each counts.
      learning_rate: scalar.

    Returns:
      The new state, and the training loss in nats, NaN if the step was skipped. A sampled loss is not
      comparable with an exact one.

    Raises:
      InputError: the shapes do not fit the state, or an id is out of range.
    """
    fits = isinstance(batch, tuple | list) and 2 <= len(batch) <= len(Batch._fields)
    require(fits, "batch", "a Batch, or a pair of inputs and labels", type(batch).__name__)
    return jit_train_step(state, _checked(state, Batch(*batch)), _checked_rate(state, learning_rate))


def _checked_rate(state: TrainState, learning_rate: Any) -> jax.Array | np.ndarray:
    if state.mesh is None:
        return jnp.asarray(learning_rate, jnp.float32)
    # a mesh of several processes takes no array of a single device
    rate = learning_rate if isinstance(learning_rate, jax.Array) else np.asarray(learning_rate)
    return rate.astype(np.float32)


def _checked(state: TrainState, batch: Batch) -> Batch:
    vocab_size, batch_size = state.model_config.vocab_size, state.config.batch_size
    inputs = check_ids("inputs", batch.inputs, vocab_size, ndim=2)
    labels = check_ids("labels", batch.labels, vocab_size, ndim=2)
    positions, weights, source = batch.positions, batch.weights, "inputs"
    if positions is not None:
        positions, source = check_ids("positions", positions, inputs.shape[1], ndim=2), "positions"
    expected = inputs.shape if positions is None else positions.shape
    require(labels.shape == expected, "labels", f"the shape of the {source}, {expected}", labels.shape)
    if weights is not None:
        weights = weights if isinstance(weights, jax.Array) else np.asarray(weights, np.float32)
        require(weights.shape == expected, "weights", f"the shape of the labels, {expected}", weights.shape)
    fits = inputs.shape[0] == batch_size and inputs.shape[1] > 0
    require(fits, "inputs", f"shape [{batch_size}, sequence_length], as the state was made for", inputs.shape)
    return shard_batch(Batch(inputs, labels, batch.starts_epoch, positions, weights), state.mesh)


@partial(jax.jit, donate_argnames="state")
def jit_train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, jax.Array]:
    """Runs `train_step` on checked arguments."""
    specs = state_specs(state)
    step = on_mesh(_step, state.mesh, (specs, batch_specs(batch, state.mesh), EVERYWHERE), (specs, EVERYWHERE))
    return step(state, batch, learning_rate)


@partial(jax.jit, donate_argnames="state")
def step_in_block(state: TrainState, block: BatchBlock) -> tuple[TrainState, jax.Array]:
    """Runs `train_step` on the batch of the state's next step, which lies in a block, without checks and copies."""
    return jit_train_step(state, *block.at_step(state.step))


def _step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, jax.Array]:
    """Runs a step on the streams and the rows of one device."""
    mesh = state.mesh
    inputs, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    sampling_key, dropout_key = _keys(state)
    streams = jnp.arange(padded_streams(state.config.batch_size, mesh))
    dropout_keys = jax.vmap(partial(jax.random.fold_in, dropout_key))(local_rows(streams, stream_axes(mesh)))
    loss_function = training_loss_of(state, sampling_key, labels)

    def batch_loss(dense: dict[str, Any], embedded: jax.Array, rows: Any) -> tuple[jax.Array, tuple[Carry, ...]]:
        model = merge_params(state.model_config, mesh, state.tables, as_varying(dense, stream_axes(mesh)))
        dtype = product_dtype(state.config.compute_dtype, inputs.shape[1])
        hidden, carry = model.hidden(embedded, _initial_carry(state, batch), dropout_keys, dtype)
        losses = loss_function.losses(rows, outputs_with_labels(batch, hidden, mesh))
        return reduce_losses(batch, losses, mesh), carry

    with product_precision(state.config.compute_dtype):
        value_and_grad = jax.value_and_grad(batch_loss, argnums=(0, 1, 2), has_aux=True)
        embedded = lookup(state.model.input_rows, inputs, vocab_axes(mesh))
        (loss, carry), (d_dense, d_embedded, d_rows) = value_and_grad(state.dense, embedded, loss_function.rows)
    loss = nan_unless_valid(loss, (inputs, labels), state.model_config.vocab_size, mesh)
    gradients = _combine(state, _embedding_gradient(state, inputs, d_embedded), loss_function.table_gradients(d_rows))
    new_state = update(state, gradients | {"dense": d_dense}, loss, learning_rate, carry)
    return new_state, jnp.where(new_state.skipped[1] > 0, jnp.nan, loss)


def _embedding_gradient(state: TrainState, inputs: jax.Array, d_embedded: jax.Array) -> RowGradient:
    """Returns the gradient of the embedding, in the rows of all streams; rows may repeat."""
    axes, batch_size = stream_axes(state.mesh), state.config.batch_size
    indices, values = (all_gather_invariant(x, axes)[:batch_size] for x in (inputs, d_embedded))
    return RowGradient(indices.reshape(-1), values.reshape(-1, values.shape[-1]))


@jax.jit
@in_float32
def exact_and_training_loss(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Computes the exact loss and the training loss of one batch with the same parameters, without dropout.

    Their difference is what sampling hides. If it grows, sample more classes.

    Args:
      state: not donated.
      batch: of ids, as from `shard_batch` if the state lies on a mesh.

    Returns:
      Two scalars in nats per word.
    """
    specs = state_specs(state), batch_specs(batch, state.mesh)
    return on_mesh(_exact_and_training_loss, state.mesh, specs, EVERYWHERE)(state, batch)


def _exact_and_training_loss(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    mesh, inputs, labels = state.mesh, jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    embedded = lookup(state.model.input_rows, inputs, vocab_axes(mesh))
    hidden = outputs_with_labels(batch, state.model.hidden(embedded, _initial_carry(state, batch))[0], mesh)

    def loss(function: ExactLoss | SampledLoss) -> jax.Array:
        return reduce_losses(batch, function.losses(function.rows, hidden), mesh)

    return loss(exact_loss_of(state, labels)), loss(training_loss_of(state, _keys(state)[0], labels))


def _keys(state: TrainState) -> jax.Array:
    """Returns the sampling key and the dropout key of the step."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))


def _initial_carry(state: TrainState, batch: Batch) -> tuple[Carry, ...]:
    return jax.tree.map(lambda leaf: jnp.where(batch.starts_epoch, jnp.zeros_like(leaf), leaf), state.carry)


def _combine(state: TrainState, embedding: RowGradient, gradients: dict[str, Gradient]) -> dict[str, Gradient]:
    """Returns the gradient of each table in a device's rows, which are distinct; tied rows have two gradients."""
    tables, axes = state.tables, vocab_axes(state.mesh)
    if "embedding" in tables:
        gradients = gradients | {"embedding": embedding}
    else:
        gradients = gradients | {"weights": _add_rows(gradients["weights"], embedding, axes)}
    return {
        name: sum_duplicates(local_gradient(gradient, tables[name].shape[0], axes), tables[name].shape[0])
        if isinstance(gradient, RowGradient)
        else gradient
        for name, gradient in gradients.items()
    }


def _add_rows(gradient: Gradient, rows: RowGradient, axes: Axes) -> Gradient:
    if isinstance(gradient, RowGradient):
        return RowGradient(*(jnp.concatenate(pair) for pair in zip(gradient, rows, strict=True)))
    rows = local_gradient(rows, gradient.shape[0], axes)
    return gradient.at[rows.indices].add(rows.values, mode="drop")
