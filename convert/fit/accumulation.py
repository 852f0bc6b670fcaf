"""`Accumulation`: the gradients that wait for an update with Keras' `gradient_accumulation_steps`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from convert.fit.live_optimizer import LiveOptimizer
from convert.fit.network import Link
from convert.fit.paths import get_path, replace_path
from convert.fit.variables import LiveVariables
from jaxlm.data.batches import Batch
from jaxlm.row_updates import RowGradient
from jaxlm.training.accumulation import Waiting, accumulate, apply_accumulated
from jaxlm.training.state import TrainState

NOTHING = Waiting((), None)


class Accumulation:
    """Gradients that wait for an update. The rows of tables stay rows; only Keras' accumulators have all of them.

    Args:
      optimizer: of the model, built.
      links: of the trained weights.
    """

    def __init__(self, optimizer: LiveOptimizer, links: Sequence[Link]):
        self.optimizer = optimizer
        self.links = [(link, optimizer.accumulator_of(link.variable)) for link in links]
        self.variables = LiveVariables()
        self.waiting = NOTHING
        self.written: Any = ()  # the rows that Keras' accumulators hold

    def step(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, jax.Array]:
        """Adds the gradients of a batch, and updates the parameters if the batch is the last one of its group.

        Args:
          state: donated by the last batch of a group.
          batch: as for `jaxlm.train_step`.
          step: number of the batch, from 0.
        """
        batches = self.optimizer.rule.batches
        state, self.waiting, loss = accumulate(state, self.waiting, batch)
        if (step + 1) % batches:
            return state, loss
        state = apply_accumulated(state, self.waiting, batches, self.optimizer.learning_rate(step))
        self.waiting = NOTHING
        return state, jnp.where(state.skipped[1] > 0, jnp.nan, loss)

    def refresh(self, state: TrainState) -> None:
        """Reads Keras' accumulators if one has changed since it was read or written."""
        if not any(self.variables.has_changed(variable) for _, variable in self.links):
            return
        for _, variable in self.links:
            self.variables.mark(variable)
        rows, dense, self.waiting = {}, state.dense, NOTHING
        if self.optimizer.steps() % self.optimizer.rule.batches:  # otherwise Keras has set them to 0
            for link, variable in self.links:
                array, (part, *path) = self.variables.read(variable, link.transposed), link.path
                if part == "dense":
                    dense = replace_path(dense, path, array)
                else:
                    indices = jnp.flatnonzero(array.reshape(len(array), -1).any(axis=1)).astype(jnp.int32)
                    rows[path[0]] = RowGradient(indices, array[indices])
            self.waiting = Waiting((rows,), dense)
        self.written = self.waiting.rows

    def write(self) -> None:
        """Puts the waiting gradients into Keras' accumulators."""
        if self.written is self.waiting.rows:
            return
        for link, variable in self.links:
            part, *path = link.path
            array = jnp.zeros(variable.shape[::-1] if link.transposed else variable.shape, variable.dtype)
            if part == "dense" and self.waiting.rows:
                array = jnp.copy(get_path(self.waiting.dense, path))
            for rows in self.waiting.rows if part == "tables" else ():
                if path[0] in rows:
                    array = array.at[rows[path[0]].indices].add(rows[path[0]].values, mode="drop")
            self.variables.write(variable, array, link.transposed, last=True)
        self.written = self.waiting.rows
