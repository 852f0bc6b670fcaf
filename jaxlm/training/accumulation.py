"""Gradient accumulation: gradients of several batches, and one update with their mean. Rows of tables stay rows."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.data.batches import Batch
from jaxlm.errors import require
from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates
from jaxlm.training.apply_gradients import update
from jaxlm.training.body import BodyOutputs
from jaxlm.training.state import TrainState
from jaxlm.training.step import checked_batch, gradients_of


class Waiting(NamedTuple):
    """Gradients that wait for an update."""

    rows: tuple[dict[str, RowGradient], ...]  # of each batch, for each table
    dense: Any  # sum over the batches; None before the first one


def accumulate(state: TrainState, waiting: Waiting, batch: Batch) -> tuple[TrainState, Waiting, jax.Array]:
    """Adds the gradients of a batch to those that wait, and updates nothing but the body's other arrays.

    Args:
      state: on one device, with a sampled loss; not donated.
      waiting: donated.
      batch: as for `train_step`.

    Returns:
      The state with the next step, the waiting gradients, and the training loss in nats, NaN if it or the gradient is
      not finite.
    """
    require(state.config.loss != "full", "loss", "a sampled one with gradient accumulation", state.config.loss)
    require(state.mesh is None, "mesh", "None with gradient accumulation", state.mesh)
    step, other, carry, rows, dense, loss = _gradients(state, checked_batch(state, batch))
    dense = dense if waiting.dense is None else _add(waiting.dense, dense)
    state = dataclasses.replace(state, step=step, other=other, carry=carry)
    return state, Waiting((*waiting.rows, rows), dense), loss


@partial(jax.jit, donate_argnames="state", static_argnames="batches")
def apply_accumulated(
    state: TrainState, waiting: Waiting, batches: int, learning_rate: jax.typing.ArrayLike
) -> TrainState:
    """Updates parameters with the sum of the waiting gradients over a number of batches, or skips it as `train_step`.

    Args:
      state: donated.
      waiting: of at least one batch.
      batches: the divisor.
      learning_rate: scalar.

    Returns:
      The state, at the same step.
    """

    def joined(name: str) -> RowGradient:
        parts = [rows[name] for rows in waiting.rows if name in rows]
        indices = jnp.concatenate([part.indices for part in parts])
        values = jnp.concatenate([part.values for part in parts]) / batches
        return sum_duplicates(RowGradient(indices, values), state.tables[name].shape[0])

    tables = sorted({name for rows in waiting.rows for name in rows})
    gradients: dict[str, Any] = {name: joined(name) for name in tables}
    gradients["dense"] = jax.tree.map(lambda leaf: leaf / batches, waiting.dense)
    unchanged = BodyOutputs(jnp.zeros(()), state.carry, state.other)
    return dataclasses.replace(
        update(state, gradients, jnp.float32(0.0), jnp.float32(learning_rate), unchanged), step=state.step
    )


@jax.jit
def _gradients(state: TrainState, batch: Batch) -> tuple[Any, ...]:
    loss, gradients, outputs = gradients_of(state, batch)
    finite = jnp.isfinite(loss) & jnp.isfinite(global_norm(gradients))
    other, carry = jax.tree.map(partial(jnp.where, finite), (outputs.other, outputs.carry), (state.other, state.carry))
    dense = gradients.pop("dense")
    return state.step + 1, other, carry, gradients, dense, jnp.where(finite, loss, jnp.nan)


_add = jax.jit(optax.tree.add, donate_argnums=0)
