"""Checkpoints of a run, written and read by Orbax: the latest one and the best one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError, reason
from jaxlm.model import LanguageModel, RowParam
from jaxlm.train_state import initial_opt_state

CHECKPOINTS_DIRECTORY = "checkpoints"


class Progress(NamedTuple):
    """What is saved beside the arrays."""

    seconds: float  # spent on training steps
    valid_loss: float | None  # exact; None where the run was stopped between evaluations


class Checkpoints:
    """The checkpoints of a run: the latest, to resume from, and the one with the lowest validation loss.

    Args:
      directory: of the run.
      read_only: whether nothing may be written.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        self.directory = directory
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: -metrics["valid_loss"], n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            enable_async_checkpointing=False,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        # one plain file per array: floats do not compress, and trying to takes longer than the disk
        arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
        handlers = {"state": arrays, "progress": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(
            (directory / CHECKPOINTS_DIRECTORY).absolute(), item_handlers=handlers, options=options
        )

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Writes a checkpoint, then deletes those that are neither the latest nor the best.

        Args:
          step: steps done.
          state: a `TrainState`, or a tree with some of its parts.
          progress: what is saved beside it.
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_named(state)), progress=ocp.args.JsonSave(progress._asdict())
        )
        known = progress.valid_loss is not None
        metrics = {"valid_loss": progress.valid_loss} if known else None
        with _quiet():
            self.manager.save(step, args=items, metrics=metrics, force=True)

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, or None."""
        return self.manager.latest_step()

    def best_step(self) -> int:
        """Returns the step with the lowest validation loss, or the latest step if none was measured.

        Raises:
          InputError: there is no checkpoint.
        """
        losses = {}
        for step in self.manager.all_steps():
            loss = self.progress(step).valid_loss
            losses[step] = float("inf") if loss is None else loss
        if not losses:
            raise InputError(f"{self.directory} has no checkpoint yet; train longer with `jaxlm train`.")
        return min(losses, key=lambda step: (losses[step], -step))

    def progress(self, step: int) -> Progress:
        """Reads what was saved beside the arrays."""
        items = self.manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        return Progress(**items["progress"])

    def restore_model(self, step: int, config: ModelConfig) -> LanguageModel:
        """Reads the parameters, without the optimizer state."""
        graphdef, tables, dense = _abstract_model(config)
        restored = self.restore(step, {"tables": tables, "dense": dense})  # as in TrainState
        return nnx.merge(graphdef, restored["tables"], restored["dense"])

    def restore_optimizer(self, step: int, model: ModelConfig, train: TrainConfig) -> dict[str, Any] | None:
        """Reads `TrainState.opt_state` for the optimizer of `train`; None if the checkpoint has none for it."""
        _, tables, dense = _abstract_model(model)
        abstract = {"opt_state": jax.eval_shape(partial(initial_opt_state, config=train), tables, dense)}
        names = set(_named(abstract))
        if not names or not names <= set(self.manager.item_metadata(step)["state"]):
            return None
        return self.restore(step, abstract)["opt_state"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads a `TrainState`, or a tree with some of its parts, of given shapes (as from `jax.eval_shape`).

        Raises:
          InputError: the checkpoint is damaged, or its arrays have other shapes.
        """
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        named = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in _named(abstract).items()
        }
        restore = ocp.args.PyTreeRestore(
            named, restore_args=ocp.checkpoint_utils.construct_restore_args(named), partial_restore=True
        )
        try:
            stored = self.manager.item_metadata(step)["state"]
            for name, leaf in named.items():
                found = stored[name].shape if name in stored else "nothing"
                if found != leaf.shape and name != "key":  # a key is stored as its words
                    raise InputError(
                        f"{self.directory}: checkpoint {step} does not fit the model's config: expected {name} of"
                        f" shape {leaf.shape}. Received: {found}."
                    )
            arrays = self.manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise anything on a damaged file
            raise InputError(f"{self.directory}: checkpoint {step} is damaged: {reason(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in named])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings that Orbax logs at every save, which say nothing about it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Returns the structure of a model, and the shapes of its tables and of its dense parameters."""
    abstract = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    graphdef, *params = nnx.split(abstract, RowParam, nnx.Param)
    tables, dense = map(nnx.to_pure_dict, params)
    return graphdef, tables, dense


def _named(tree: Any) -> dict[str, Any]:
    """Flattens a tree to names such as "dense/lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
