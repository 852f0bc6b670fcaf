"""Checks that the arrays of a training state are finite."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.training.state import TrainState


def not_finite(state: TrainState) -> list[str]:
    """Returns readable names of the weights and moments that are not finite."""
    return [name for name, finite in _all_finite(_parts(state)).items() if not finite]


def lower_not_finite(state: TrainState) -> jax.stages.Lowered:
    """Returns the program of `not_finite` for a state, which may be abstract, to compile it ahead of time."""
    return _all_finite.lower(_parts(state))


def _parts(state: TrainState) -> dict[str, Any]:
    parts: dict[str, Any] = {name: table for name, table in state.tables.items()} | {"the LSTM": state.dense}
    return parts | {f"the optimizer state of {name}": part for name, part in state.opt_state.items()}


@jax.jit
def _all_finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns whether all numbers of each part are finite."""

    # the sum of zeros and NaNs, since an array of flags would be another table in memory
    def is_finite(part: Any) -> jax.Array:
        return jnp.isfinite(sum(jnp.sum(leaf * 0) for leaf in jax.tree.leaves(part)))

    return {name: is_finite(part) if jax.tree.leaves(part) else jnp.bool_(True) for name, part in parts.items()}
