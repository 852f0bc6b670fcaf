"""Keras' constraints on the variables of a body, such as `MaxNorm`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from convert.fit.network import Link
from convert.fit.paths import get_path, replace_path
from jaxlm.training.state import TrainState


def constraints_on(links: Sequence[Link]) -> Callable[[TrainState], TrainState]:
    """Returns the function that applies the constraints of trained variables in the body to a state.

    Keras does so after every batch, also after one that only adds to accumulated gradients.
    """
    constrained = [
        (link.path, link.variable.constraint)
        for link in links
        if link.path[0] == "dense" and getattr(link.variable, "constraint", None) is not None
    ]
    functions = [constraint for _, constraint in constrained]
    apply = jax.jit(
        lambda arrays: [
            jnp.asarray(function(array), array.dtype) for function, array in zip(functions, arrays, strict=True)
        ]
    )

    def constrain(state: TrainState) -> TrainState:
        arrays = apply([get_path(state, path) for path, _ in constrained]) if constrained else []
        for (path, _), array in zip(constrained, arrays, strict=True):
            state = replace_path(state, path, array)
        return state

    return constrain
