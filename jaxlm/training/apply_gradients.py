"""`update`: clips the gradients of a step and updates parameters in place, or nothing if they are not finite."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import TrainConfig
from jaxlm.parallel.collectives import psum
from jaxlm.parallel.mesh import Mesh, vocab_axes
from jaxlm.row_updates import RowGradient, global_norm, update_rows
from jaxlm.training.body import BodyOutputs
from jaxlm.training.optimizer import optimizer
from jaxlm.training.state import TrainState


def update(
    state: TrainState, gradients: dict[str, Any], loss: jax.Array, learning_rate: jax.Array, outputs: BodyOutputs
) -> TrainState:
    """Clips all gradients by their global norm, and updates every table and all dense parameters.

    If the loss or the norm is not finite, nothing is updated. No table is copied for that: the row updates are sent out
    of range instead.
    """
    norms = _norms(gradients, state.mesh)
    norm = optax.tree.norm(norms)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    gradients = _clip(gradients, norms, norm, state.config)
    tx = optimizer(state.config, learning_rate, state.tx)
    params: dict[str, Any] = state.tables | {"dense": state.dense}
    opt_state = dict(state.opt_state)
    for name, gradient in gradients.items():
        param, before = params[name], (params[name], opt_state[name])
        if isinstance(gradient, RowGradient):
            indices = jnp.where(finite, gradient.indices, param.shape[0] + jnp.arange(gradient.indices.size))
            after = update_rows(tx, *before, gradient._replace(indices=indices.astype(jnp.int32)))
            # only scalars are left to undo, such as Adam's count
            params[name], opt_state[name] = jax.tree.map(partial(_select_scalar, finite), after, before)
        else:
            params[name], opt_state[name] = _apply_if(finite, tx, gradient, *before)
    skipped = jnp.where(finite, state.skipped.at[1].set(0), state.skipped + 1)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tables={name: params[name] for name in state.tables},
        dense=params["dense"],
        opt_state=opt_state,
        other=jax.tree.map(partial(jnp.where, finite), outputs.other, state.other),
        carry=jax.tree.map(partial(jnp.where, finite), outputs.carry, state.carry),
        skipped=skipped,
    )


def _apply_if(
    finite: jax.Array, tx: optax.GradientTransformation, gradient: Any, param: Any, opt_state: optax.OptState
) -> tuple[Any, optax.OptState]:
    """Returns the next parameters and optimizer state, or the given ones if the gradient is not finite."""

    def apply(param: Any, opt_state: optax.OptState) -> tuple[Any, optax.OptState]:
        updates, opt_state = tx.update(gradient, opt_state, param)
        return optax.apply_updates(param, updates), opt_state

    def choose(*before: Any) -> tuple[Any, optax.OptState]:
        # selecting each number reads all of them once more, which on a processor takes longer than to branch
        return jax.lax.cond(finite, apply, lambda *old: old, *before)

    def select(*before: Any) -> tuple[Any, optax.OptState]:
        # on an accelerator, a branch waits for the host
        return jax.tree.map(partial(jnp.where, finite), apply(*before), before)

    return jax.lax.platform_dependent(param, opt_state, cpu=choose, default=select)


def _select_scalar(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return new if new.ndim else jnp.where(condition, new, old)


def _norms(gradients: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """Returns the norm of the gradient of each table, whose rows lie along `vocab`, and of each dense parameter."""
    tables = [name for name in gradients if name != "dense"]  # a set's order, and so the program, varies by process
    norms = {name: jnp.sqrt(psum(global_norm(gradients[name]) ** 2, vocab_axes(mesh))) for name in tables}
    return norms | {"dense": jax.tree.map(global_norm, gradients["dense"])}


def _clip(gradients: dict[str, Any], norms: dict[str, Any], norm: jax.Array, config: TrainConfig) -> dict[str, Any]:
    """Limits the norm of all gradients, or of each by itself."""
    if not config.clip_norm:
        return gradients

    def clip(gradient: Any, own_norm: jax.Array) -> Any:
        scale = jnp.minimum(1.0, config.clip_norm / (own_norm if config.clip_each else norm))
        if isinstance(gradient, RowGradient):  # its indices are not numbers to scale
            return gradient._replace(values=gradient.values * scale)
        return gradient * scale

    return jax.tree.map(clip, gradients, norms, is_leaf=lambda leaf: isinstance(leaf, RowGradient))
