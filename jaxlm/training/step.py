"""`train_step`: loss and gradients on the rows that a batch touches, row-sparse updates, everything in place.

`step_in_block` is the same for a batch in a block that is on the devices already.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.batch_blocks import BatchBlock
from jaxlm.data.batches import Batch, batch_specs, outputs_with_labels, reduce_losses, shard_batch
from jaxlm.errors import require
from jaxlm.matmul import product_precision
from jaxlm.parallel.collectives import (
    all_gather_invariant,
    as_varying,
    local_gradient,
    lookup,
    nan_unless_valid,
    on_mesh,
)
from jaxlm.parallel.mesh import EVERYWHERE, Axes, stream_axes, tree_specs, vocab_axes
from jaxlm.row_updates import RowGradient, sum_duplicates
from jaxlm.token_ids import Ids, as_int32, check_ids, id_range
from jaxlm.training.apply_gradients import update
from jaxlm.training.body import BodyOutputs
from jaxlm.training.objectives import Gradient, training_loss_of
from jaxlm.training.parameter_dropout import drop_parameters
from jaxlm.training.state import TrainState


def train_step(
    state: TrainState, batch: Batch | tuple[Ids, Ids], learning_rate: jax.typing.ArrayLike | None = None
) -> tuple[TrainState, jax.Array]:
    """Runs one training step: loss and gradients on the touched rows, clipping, update in place.

    A step whose loss or gradient is not finite changes nothing but the counters of `state`: `step` and `skipped`.
    Ids on the host are checked; an id out of range in a JAX array makes the loss NaN and so skips the step.
    With loss "full" the gradient of the softmax rows is dense. Another learning rate does not compile anew.

    Args:
      state: donated; use only the returned one.
      batch: a `Batch`, or a pair of inputs and labels, each `[batch_size, sequence_length]` integer ids, where each
        label is the word after the input. The LSTM state carries over from the last batch, unless the batch
        has `starts_epoch`. Its `positions` are those of the outputs with labels, its `weights` those of the labels.
      learning_rate: scalar; not read if the state was made with an Optax transformation that has its own.

    Returns:
      The new state, and the training loss in nats, NaN if the step was skipped. A sampled loss is not
      comparable with an exact one.

    Raises:
      InputError: the shapes do not fit the state, or an id is out of range.
    """
    fits = isinstance(batch, tuple | list) and 2 <= len(batch) <= len(Batch._fields)
    require(fits, "batch", "a Batch, or a pair of inputs and labels", type(batch).__name__)
    return jit_train_step(state, checked_batch(state, Batch(*batch)), _checked_rate(state, learning_rate))


def _checked_rate(state: TrainState, learning_rate: Any) -> jax.Array | np.ndarray:
    needed = state.tx is None or not isinstance(state.tx, optax.GradientTransformation)
    expected = "a learning rate, unless the state has an Optax transformation with its own"
    require(not needed or learning_rate is not None, "learning_rate", expected, learning_rate)
    learning_rate = 0.0 if learning_rate is None else learning_rate
    if state.mesh is None:
        return jnp.asarray(learning_rate, jnp.float32)
    # a mesh of several processes takes no array of a single device
    rate = learning_rate if isinstance(learning_rate, jax.Array) else np.asarray(learning_rate)
    return rate.astype(np.float32)


def checked_batch(state: TrainState, batch: Batch) -> Batch:
    """Returns a batch on the devices of a state; raises `InputError` if a shape or an id on the host does not fit."""
    many = isinstance(batch.inputs, tuple)
    given = batch.inputs if many else (batch.inputs,)
    found = f"{len(given)}"
    require(len(given) == len(state.lookups), "inputs", f"{len(state.lookups)} arrays of ids, one per lookup", found)
    inputs = []
    for name, ids in zip(state.lookups, given, strict=True):
        ndim = np.ndim(ids) if many else 2
        size = state.vocab_size if state.mesh is not None else state.tables[name].shape[0]
        inputs.append(as_int32("inputs", check_ids("inputs", ids, size, ndim)))
        fits = inputs[-1].shape[0] == (state.config.batch_size if jax.tree.leaves(state.carry) else len(batch.labels))
        fits = fits and inputs[-1].size > 0
        expected = f"shape [{state.config.batch_size}, sequence_length], as the state was made for"
        require(fits, "inputs", expected, inputs[-1].shape)
    labels = as_int32("labels", check_ids("labels", batch.labels, state.vocab_size, ndim=2))
    positions, weights, source = batch.positions, batch.weights, "inputs"
    if positions is not None:
        positions, source = _checked_positions(positions, inputs[0].shape[1]), "positions"
    if positions is not None or not many:
        shape = inputs[0].shape if positions is None else positions.shape
        require(labels.shape == shape, "labels", f"the shape of the {source}, {shape}", labels.shape)
    if weights is not None:
        weights = weights if isinstance(weights, jax.Array) else np.asarray(weights, np.float32)
        require(weights.shape == labels.shape, "weights", f"the shape of the labels, {labels.shape}", weights.shape)
    checked = batch._replace(
        inputs=tuple(inputs) if many else inputs[0], labels=labels, positions=positions, weights=weights
    )
    return shard_batch(checked, state.mesh)


def _checked_positions(positions: Ids, num_steps: int) -> Ids:
    """Returns time steps `[batch_size, P]` as int32; raises `InputError` if one on the host is out of range."""
    found: Ids = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    require(found.ndim == 2, "positions", "shape [batch_size, P]", found.shape)
    found = as_int32("positions", found)
    if isinstance(found, np.ndarray) and found.size:
        low, high = id_range(found)
        expected = f"time steps from -1 to {num_steps - 1}"
        require(low >= -1 and high < num_steps, "positions", expected, f"{low} to {high}")
    return found


@partial(jax.jit, donate_argnames="state")
def jit_train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, jax.Array]:
    """Runs `train_step` on checked arguments."""
    specs = tree_specs(state, state.mesh)
    step = on_mesh(_step, state.mesh, (specs, batch_specs(batch, state.mesh), EVERYWHERE), (specs, EVERYWHERE))
    return step(state, batch, learning_rate)


@partial(jax.jit, donate_argnames="state")
def step_in_block(state: TrainState, block: BatchBlock) -> tuple[TrainState, jax.Array]:
    """Runs `train_step` on the batch of the state's next step, in a block, without checks and copies."""
    return jit_train_step(state, *block.at_step(state.step))


def _step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, jax.Array]:
    """Runs a step on the streams and the rows of one device."""
    loss, gradients, outputs = gradients_of(state, batch)
    new_state = update(state, gradients, loss, learning_rate, outputs)
    return new_state, jnp.where(new_state.skipped[1] > 0, jnp.nan, loss)


def gradients_of(state: TrainState, batch: Batch) -> tuple[jax.Array, dict[str, Any], BodyOutputs]:
    """Returns the loss of a batch, the gradient of each table and of "dense", and the outputs of the body."""
    mesh, inputs, labels = state.mesh, id_arrays(batch), jnp.asarray(batch.labels)
    sampling_key, dropout_key = step_keys(state)
    loss_function = training_loss_of(state, sampling_key, labels)

    def batch_loss(dense: Any, looked_up: tuple[jax.Array, ...], rows: Any) -> tuple[jax.Array, BodyOutputs]:
        dense = as_varying(dense, stream_axes(mesh))
        dense, looked_up = drop_parameters(state, inputs, dense, looked_up, dropout_key)
        outputs = state.body(dense, state.other, looked_up, batch.features, initial_carry(state, batch), dropout_key)
        losses = loss_function.losses(rows, outputs_with_labels(batch, outputs.hidden, mesh))
        return reduce_losses(batch, losses, mesh) + outputs.loss, outputs

    with product_precision(state.config.compute_dtype):
        value_and_grad = jax.value_and_grad(batch_loss, argnums=(0, 1, 2), has_aux=True)
        looked_up = look_up(state, inputs)
        (loss, outputs), (d_dense, d_looked_up, d_rows) = value_and_grad(state.dense, looked_up, loss_function.rows)
    loss = nan_unless_valid(loss, (*inputs, labels), state.vocab_size, mesh)
    gradients = _combine(state, inputs, d_looked_up, loss_function.table_gradients(d_rows))
    return loss, gradients | {"dense": d_dense}, outputs


def id_arrays(batch: Batch) -> tuple[jax.Array, ...]:
    """Returns the ids of each lookup."""
    return tuple(map(jnp.asarray, batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)))


def look_up(state: TrainState, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Returns the rows of each array of ids."""
    axes = vocab_axes(state.mesh)
    return tuple(lookup(state.tables[name], ids, axes) for name, ids in zip(state.lookups, inputs, strict=True))


def step_keys(state: TrainState) -> jax.Array:
    """Returns the sampling key and the dropout key of the step."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))


def initial_carry(state: TrainState, batch: Batch) -> Any:
    """Returns the carry that a batch starts with."""
    return jax.tree.map(lambda leaf: jnp.where(batch.starts_epoch, jnp.zeros_like(leaf), leaf), state.carry)


def _combine(
    state: TrainState,
    inputs: tuple[jax.Array, ...],
    d_looked_up: tuple[jax.Array, ...],
    gradients: dict[str, Gradient],
) -> dict[str, Gradient]:
    """Returns the gradient of each trained table in a device's rows, which are distinct.

    A table that is looked up twice, or whose rows are tied to those of the softmax, has several gradients.
    """
    tables, axes = state.tables, stream_axes(state.mesh)
    streams = state.config.batch_size if axes else None  # a mesh may add some
    for name, ids, d_rows in zip(state.lookups, inputs, d_looked_up, strict=True):
        ids, d_rows = (all_gather_invariant(x, axes)[:streams] for x in (ids, d_rows))
        rows = RowGradient(ids.reshape(-1), d_rows.reshape(-1, *d_rows.shape[ids.ndim :]))
        both = _add_rows(gradients[name], rows, vocab_axes(state.mesh)) if name in gradients else rows
        gradients = gradients | {name: both}
    return {
        name: sum_duplicates(
            local_gradient(gradient, tables[name].shape[0], vocab_axes(state.mesh)), tables[name].shape[0]
        )
        if isinstance(gradient, RowGradient)
        else gradient
        for name, gradient in gradients.items()
        if name not in state.frozen
    }


def _add_rows(gradient: Gradient, rows: RowGradient, axes: Axes) -> Gradient:
    if isinstance(gradient, RowGradient):
        return RowGradient(*(jnp.concatenate(pair) for pair in zip(gradient, rows, strict=True)))
    rows = local_gradient(rows, gradient.shape[0], axes)
    return gradient.at[rows.indices].add(rows.values, mode="drop")
