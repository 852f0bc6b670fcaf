"""The Optax transformation of a training step, for table rows and dense parameters alike."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config import TrainConfig

# an element-wise transformation, its schedule included, or a hashable function that makes one of a learning rate
Transformation: TypeAlias = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


def optimizer(
    config: TrainConfig, learning_rate: Any, tx: Transformation | None = None
) -> optax.GradientTransformation:
    """Returns the transformation of a config with a learning rate, or `tx` if it is given."""
    tx = _plain_optimizer(config, learning_rate, tx)
    tx = _with_weight_decay(tx, config.weight_decay) if config.weight_decay else tx
    return _with_averages(tx, config.average_after) if config.has_averages else tx


def _plain_optimizer(
    config: TrainConfig, learning_rate: Any, tx: Transformation | None
) -> optax.GradientTransformation:
    if tx is not None:
        return tx if isinstance(tx, optax.GradientTransformation) else tx(learning_rate)
    if config.optimizer == "adagrad":
        return optax.adagrad(learning_rate, config.initial_accumulator_value)
    return optax.adam(learning_rate, b2=config.beta_2) if config.optimizer == "adam" else optax.sgd(learning_rate)


def initial_opt_state(
    tables: dict[str, jax.Array], dense: dict[str, Any], config: TrainConfig, tx: Transformation | None = None
) -> dict[str, Any]:
    """Returns the Optax state of each table by its name, and of the dense parameters, "dense", before any step."""
    transformation = optimizer(config, 0.0, tx)
    states = {name: transformation.init(table) for name, table in tables.items()}
    return states | {"dense": transformation.init(dense)}


def _with_weight_decay(tx: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """Adds rate * parameter to each gradient.

    Unlike `optax.add_decayed_weights` in a chain, it keeps the state that of `tx`, which checkpoints and conversions
    read.
    """

    def update(gradients: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return tx.update(jax.tree.map(lambda g, param: g + rate * param, gradients, params), state, params)

    return optax.GradientTransformation(tx.init, update)


class Averages(NamedTuple):
    """The state of an optimizer with averages of the parameters w_1 to w_n after n steps.

    Averaging begins once `steps` is 0. Until then it is the negative number of steps to go.
    """

    steps: jax.Array  # int32 scalar: n
    weighted: Any  # as the parameters: the sum of (k - 1) * (w_k - w_(k-1)) over k
    state: optax.OptState  # of the optimizer


def _with_averages(tx: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """Averages parameters after each step beyond the first `start` ones: mean_k(w_k) = w_n - weighted / n.

    If `start` is 0, averaging begins with `start_averages`.

    A row that a step does not touch has an increment of zero there. So the average is exact, and costs as much as the
    step in the rows that it touches.
    """

    steps = -start or jnp.iinfo(jnp.int32).min

    def init(params: Any) -> Averages:
        return Averages(jnp.int32(steps), jax.tree.map(jnp.zeros_like, params), tx.init(params))

    def update(gradients: Any, averages: Averages, params: Any = None) -> tuple[Any, Averages]:
        updates, state = tx.update(gradients, averages.state, params)
        earlier = jnp.maximum(averages.steps, 0).astype(jnp.float32)
        weighted = jax.tree.map(lambda total, delta: total + earlier * delta, averages.weighted, updates)
        return updates, Averages(averages.steps + 1, weighted, state)

    return optax.GradientTransformation(init, update)


def averaging_has_begun(opt_state: dict[str, Any]) -> bool:
    """Returns whether the steps of an optimizer with averages are averaged."""
    return int(np.asarray(opt_state["dense"].steps)) >= 0


def start_averages(opt_state: dict[str, Averages]) -> dict[str, Averages]:
    """Returns a state of an optimizer with averages, from which on all steps are averaged."""
    return {name: averages._replace(steps=jnp.zeros_like(averages.steps)) for name, averages in opt_state.items()}


def averaged(
    tables: dict[str, jax.Array], dense: Any, opt_state: dict[str, Any], config: TrainConfig
) -> tuple[dict[str, jax.Array], Any]:
    """Returns the averages of tables and dense parameters; the given ones before averaging begins or without it."""
    if not config.has_averages:
        return tables, dense
    params = _averages(tables | {"dense": dense}, opt_state)
    return {name: params[name] for name in tables}, params["dense"]


@jax.jit
def _averages(params: dict[str, Any], opt_state: dict[str, Averages]) -> dict[str, Any]:
    def average(part: Any, averages: Averages) -> Any:
        count = jnp.maximum(averages.steps, 1).astype(jnp.float32)
        return jax.tree.map(lambda param, weighted: param - weighted / count, part, averages.weighted)

    return {name: average(part, opt_state[name]) for name, part in params.items()}
