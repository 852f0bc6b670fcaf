"""Reads a model and the state of its optimizer from a checkpoint."""

from functools import partial
from typing import Any

import jax

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import abstract_model, merge_params, split_params
from jaxlm.parallel.mesh import Mesh
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.training.optimizer import averaged, initial_opt_state


def restore_model(
    checkpoints: Checkpoints, step: int, config: ModelConfig, mesh: Mesh | None = None, train: TrainConfig | None = None
) -> LanguageModel:
    """Reads the parameters onto one device or a mesh; their averages if `train` has them."""
    _, tables, dense = split_params(abstract_model(config, mesh))
    restored = checkpoints.restore(step, {"tables": tables, "dense": dense}, mesh)  # as in TrainState
    params = restored["tables"], restored["dense"]
    if train is not None and train.has_averages:
        opt_state = restore_optimizer(checkpoints, step, config, train, mesh)
        params = params if opt_state is None else averaged(*params, opt_state, train)
    return merge_params(config, mesh, *params)


def restore_optimizer(
    checkpoints: Checkpoints, step: int, config: ModelConfig, train: TrainConfig, mesh: Mesh | None = None
) -> dict[str, Any] | None:
    """Reads `TrainState.opt_state` for the optimizer of `train`; None if the checkpoint has none for it."""
    _, tables, dense = split_params(abstract_model(config, mesh))
    abstract = {"opt_state": jax.eval_shape(partial(initial_opt_state, config=train), tables, dense)}
    if not jax.tree.leaves(abstract) or not checkpoints.has(step, abstract):
        return None
    return checkpoints.restore(step, abstract, mesh)["opt_state"]
