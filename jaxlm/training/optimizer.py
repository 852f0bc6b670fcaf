"""The Optax transformation of a training step, for table rows and dense parameters alike."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from jaxlm.config import TrainConfig

# an element-wise transformation, its schedule included, or a hashable function that makes one of a learning rate
Transformation: TypeAlias = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


def optimizer(
    config: TrainConfig, learning_rate: Any, tx: Transformation | None = None
) -> optax.GradientTransformation:
    """Returns the transformation of a config with a learning rate, or `tx` if it is given."""
    if tx is not None:
        return tx if isinstance(tx, optax.GradientTransformation) else tx(learning_rate)
    if config.optimizer == "adagrad":
        return optax.adagrad(learning_rate, config.initial_accumulator_value)
    return optax.adam(learning_rate) if config.optimizer == "adam" else optax.sgd(learning_rate)


def initial_opt_state(
    tables: dict[str, jax.Array], dense: dict[str, Any], config: TrainConfig, tx: Transformation | None = None
) -> dict[str, Any]:
    """Returns the Optax state of each table by its name, and of the dense parameters, "dense", before any step."""
    transformation = optimizer(config, 0.0, tx)
    states = {name: transformation.init(table) for name, table in tables.items()}
    return states | {"dense": transformation.init(dense)}
