"""Checks that the arrays of a training state are finite."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.training.state import TrainState


def not_finite(state: TrainState) -> list[str]:
    """Returns readable names of the weights and moments that are not finite."""
    parts: dict[str, Any] = {name: table for name, table in state.tables.items()} | {"the LSTM": state.dense}
    parts |= {f"the optimizer state of {name}": part for name, part in state.opt_state.items()}
    return [name for name, finite in _all_finite(parts).items() if not finite]


@jax.jit
def _all_finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns whether all numbers of each part are finite."""

    # the sum of zeros and NaNs, since an array of flags would be another table in memory
    def is_finite(part: Any) -> jax.Array:
        return jnp.isfinite(sum(jnp.sum(leaf * 0) for leaf in jax.tree.leaves(part)))

    return {name: is_finite(part) if jax.tree.leaves(part) else jnp.bool_(True) for name, part in parts.items()}
