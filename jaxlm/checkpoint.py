"""A run directory: config.json, vocabulary.json, metrics.jsonl and Orbax checkpoints."""

import dataclasses
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxlm.config import InputError, ModelConfig, TrainConfig, from_dict, read_json, write_json
from jaxlm.data import VOCABULARY_FILE
from jaxlm.model import LanguageModel, RowParam
from jaxlm.train import TrainState, initial_opt_state
from jaxlm.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
LENGTH_FIELDS = ("steps", "epochs", "minutes", "eval_every", "eval_tokens")  # may change when a run goes on


class RunConfig(NamedTuple):
    """What config.json holds."""

    model: ModelConfig
    train: TrainConfig
    data: str  # the directory that `jaxlm prepare` made
    total_steps: int  # 0 while it is not known yet


class Progress(NamedTuple):
    """What is saved beside the arrays."""

    seconds: float  # spent on training steps
    valid_loss: float | None  # exact, None where the run was stopped between evaluations


def save_config(directory: Path, config: RunConfig) -> None:
    """Writes config.json, whole or not at all."""
    value = {"model": dataclasses.asdict(config.model), "train": dataclasses.asdict(config.train)}
    write_json(directory / CONFIG_FILE, config._asdict() | value)


def load_config(directory: Path) -> RunConfig:
    """Reads config.json.

    Raises:
      InputError: it is missing or not valid.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{directory} is no run directory: it has no {CONFIG_FILE}. Make one with `jaxlm train`.")
    value = read_json(path)
    try:
        model = from_dict(ModelConfig, value["model"], f"{path}: model")
        train = from_dict(TrainConfig, value["train"], f"{path}: train")
        return RunConfig(model, train, str(value["data"]), int(value["total_steps"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def load_vocabulary(directory: Path, config: ModelConfig) -> Vocabulary:
    """Reads a run's vocabulary and checks that the weights are made for it.

    Raises:
      InputError: it is missing, damaged, or of another size than the model's.
    """
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    if len(vocabulary) != config.vocab_size:
        raise InputError(
            f"{directory / VOCABULARY_FILE} does not fit the weights: it has {len(vocabulary)} words,"
            f" the model {config.vocab_size}."
        )
    return vocabulary


class Checkpoints:
    """The checkpoints of a run: the latest, to go on from, and the one of the lowest validation loss."""

    def __init__(self, directory: Path, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs a page at every save
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
        # one plain file an array: floats do not compress, and trying to takes longer than the disk
        arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
        handlers = {"state": arrays, "progress": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(
            (directory / "checkpoints").absolute(), item_handlers=handlers, options=options
        )

    def save(self, state: TrainState, progress: Progress) -> None:
        """Writes a checkpoint, then deletes those that are neither the latest nor the best."""
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_named(state)), progress=ocp.args.JsonSave(progress._asdict())
        )
        known = progress.valid_loss is not None
        metrics = {"valid_loss": progress.valid_loss} if known else None
        self.manager.save(int(state.step), args=items, metrics=metrics, force=True)

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self.manager.latest_step()

    def best_step(self) -> int:
        """The step of the lowest validation loss, or the latest where none was measured.

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
        """Reads the parameters alone, without the optimizer's state."""
        graphdef, tables, dense = _abstract_model(config)
        restored = self.restore(step, {"tables": tables, "dense": dense})  # as in TrainState
        return nnx.merge(graphdef, restored["tables"], restored["dense"])

    def restore_optimizer(self, step: int, model: ModelConfig, train: TrainConfig) -> dict[str, Any] | None:
        """Reads `TrainState.opt_state` of the optimizer of `train`; None where the checkpoint has none of it."""
        _, tables, dense = _abstract_model(model)
        abstract = {"opt_state": jax.eval_shape(partial(initial_opt_state, config=train), tables, dense)}
        names = set(_named(abstract))
        if not names or not names <= set(self.manager.item_metadata(step)["state"]):
            return None
        return self.restore(step, abstract)["opt_state"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads a `TrainState`, or a tree of some of its parts, of the shapes given (as from `jax.eval_shape`)."""
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
                if found != leaf.shape and name != "key":  # a key is stored as the words it is made of
                    raise InputError(
                        f"{self.directory}: checkpoint {step} does not fit {CONFIG_FILE}: expected {name} of shape"
                        f" {leaf.shape}. Received: {found}."
                    )
            arrays = self.manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise what they please on a damaged file
            reason = str(error).splitlines()[0][:160]
            raise InputError(f"{self.directory}: checkpoint {step} is damaged: {reason}") from error
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in named])


def _abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """The structure of a model, and the shapes of its tables and of its dense parameters."""
    abstract = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    graphdef, *params = nnx.split(abstract, RowParam, nnx.Param)
    tables, dense = map(nnx.to_pure_dict, params)
    return graphdef, tables, dense


def _named(tree: Any) -> dict[str, Any]:
    """Flattens a tree to names such as "dense/lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def load_model(directory: Path) -> tuple[LanguageModel, Vocabulary, RunConfig]:
    """Reads the best model of a run.

    Returns:
      The model, its vocabulary, and the run's config.

    Raises:
      InputError: the directory is no run, has no checkpoint, or its parts do not fit each other.
    """
    config = load_config(directory)
    vocabulary = load_vocabulary(directory, config.model)
    if not (directory / "checkpoints").is_dir():
        raise InputError(f"{directory} has no checkpoint yet; train longer with `jaxlm train`.")
    checkpoints = Checkpoints(directory, read_only=True)
    return checkpoints.restore_model(checkpoints.best_step(), config.model), vocabulary, config


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line that was cut off is left out."""
    path = directory / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
