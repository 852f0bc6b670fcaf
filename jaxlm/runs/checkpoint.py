"""Checkpoints of a run: arrays written and read by Orbax, with checksums. Each appears whole or not at all."""

import dataclasses
import gc
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError, reason
from jaxlm.files import read_json, readable_size, staged, verify_checksums, write_checksums, write_json
from jaxlm.model.language_model import LanguageModel, abstract_model, merge_params, split_params
from jaxlm.parallel.mesh import Mesh, leaf_name, map_data, mesh_shape, sharded_dim
from jaxlm.parallel.processes import is_first, is_peer_death, wait_for_all
from jaxlm.runs.orbax_arrays import checkpointer, fits, ignore_closed_loops, quiet, sharding_of
from jaxlm.training.optimizer import initial_opt_state

CHECKPOINTS_DIRECTORY = "checkpoints"
PROGRESS_FILE, PROGRESS_FORMAT = "progress.json", 1
STATE_DIRECTORY = "state"
KEPT = 2  # latest checkpoints that are kept, besides the best

logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """What is saved beside the arrays."""

    seconds: float  # spent on training steps
    valid_loss: float | None = None  # exact; None between evaluations
    losses: tuple[float, ...] = ()  # of steps since the last line of metrics.jsonl
    logged: tuple[int, float] = (0, 0.0)  # steps and seconds at that line
    jax_version: str = jax.__version__
    mesh: tuple[int, int] = (1, 1)  # devices along `data` and along `vocab`
    num_processes: int = 1
    device: str = ""  # what kind they are


class Checkpoints:
    """The checkpoints of a run: the latest two, to resume from, and the one with the lowest validation loss.

    On a CPU a save takes as long as the disk. On an accelerator the arrays are copied to the host, and written
    while training continues. Several processes write one checkpoint together, into a directory that all of them see.

    Args:
      directory: of the run.
    """

    def __init__(self, directory: Path):
        self.directory = (directory / CHECKPOINTS_DIRECTORY).absolute()
        self.arrays = checkpointer(MultiprocessingOptions())  # of all processes
        self.own_arrays = checkpointer(  # of this one, to read onto a device of its own
            MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        )
        self.intact: dict[int, bool] = {}  # checkpoints that were verified
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None  # the save that is under way

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Writes a checkpoint, then deletes those that are neither among the latest nor the best.

        Args:
          step: steps done.
          state: a `TrainState`, or a tree with some of its parts.
          progress: what is saved beside it.

        Raises:
          OSError: this checkpoint, or the one before on an accelerator, could not be written.
        """
        self.wait()
        arrays = _named(state)
        if jax.default_backend() == "cpu" or jax.process_count() > 1:
            self._write(step, arrays, progress)
        else:  # the next step donates the arrays
            self.pending = self.pool.submit(
                self._write, step, jax.tree.map(partial(map_data, jax.device_get), arrays), progress
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          OSError: it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, arrays: dict[str, Any], progress: Progress) -> None:
        with quiet():
            failure = self._try_to_write(step, arrays, progress)
            if failure:
                time.sleep(0.5)  # writes that were under way fail now
                gc.collect()  # and their futures, free of the exception, complain
        if failure:
            sys.unraisablehook = ignore_closed_loops  # a slow write may fail later still
            raise OSError(f"checkpoint {step} could not be written: {failure}")

    def _try_to_write(self, step: int, arrays: dict[str, Any], progress: Progress) -> str:
        """Returns what went wrong, or nothing."""
        path = self.directory / str(step)
        try:
            with self._new_directory(path, sum(array.nbytes for array in arrays.values())) as target:
                self.arrays.save(target / STATE_DIRECTORY, args=ocp.args.PyTreeSave(arrays))
                if is_first():
                    write_json(target / PROGRESS_FILE, progress._asdict(), PROGRESS_FORMAT)
                    write_checksums(target)
            self.intact[step] = True
            if is_first():
                self._prune()
            wait_for_all("checkpoint")
        except Exception as error:  # Orbax and TensorStore raise anything on a full disk
            if is_peer_death(error):
                raise
            return reason(error)
        return ""

    @contextmanager
    def _new_directory(self, path: Path, size: int) -> Iterator[Path]:
        """Makes a directory in which all processes write; process 0 moves it into place."""
        if not is_first():
            wait_for_all("directory")
            yield path.with_name(path.name + ".partial")
            return
        self.directory.mkdir(exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if size > free:  # told before Orbax tries
            raise InputError(f"it needs {readable_size(size)}, and {readable_size(free)} are free")
        if path.exists():  # a damaged one that was passed over
            _delete(path)
        with staged(path) as target:
            target.mkdir()
            wait_for_all("directory")
            yield target

    def _prune(self) -> None:
        steps = self.steps()
        kept = {str(step) for step in (*steps[:KEPT], *self._by_loss()[:1])}
        for path in self.directory.iterdir():
            if path.name not in kept:
                _delete(path)

    def _by_loss(self) -> list[int]:
        """Returns the steps that were evaluated, the lowest validation loss first."""
        losses: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = self.progress(step).valid_loss
            except (InputError, OSError):
                self.is_intact(step)  # tells what is wrong
                continue
            if loss is not None:
                losses[step] = loss
        return sorted(losses, key=losses.__getitem__)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, damaged ones included, the latest first."""
        if not self.directory.is_dir():
            return []
        return sorted((int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()), reverse=True)

    def is_intact(self, step: int) -> bool:
        """Checks a checkpoint against its checksums, and logs what is wrong with it."""
        if step not in self.intact:
            try:
                verify_checksums(self.directory / str(step))
                self.intact[step] = True
            except (InputError, OSError) as error:
                self.intact[step] = False
                logger.warning("%s Checkpoint %d is passed over.", error, step)
        return self.intact[step]

    def latest_step(self) -> int | None:
        """Returns the step of the latest intact checkpoint, or None if there are no checkpoints.

        Raises:
          InputError: all of them are damaged.
        """
        steps = self.steps()
        for step in steps:
            if self.is_intact(step):
                return step
        if steps:
            raise InputError(f"All checkpoints in {self.directory} are damaged; restore a copy, or start a new run.")
        return None

    def best_step(self) -> int:
        """Returns the intact step with the lowest validation loss, or the latest if none was evaluated.

        Raises:
          InputError: there is no intact checkpoint.
        """
        for step in self._by_loss():
            if self.is_intact(step):
                return step
        latest = self.latest_step()
        if latest is None:
            raise InputError(f"{self.directory.parent} has no checkpoint yet; train longer with `jaxlm train`.")
        return latest

    def progress(self, step: int) -> Progress:
        """Reads what was saved beside the arrays, after checking that it was not changed."""
        verify_checksums(self.directory / str(step), PROGRESS_FILE)
        value = read_json(self.directory / str(step) / PROGRESS_FILE, PROGRESS_FORMAT)
        tuples = {name: tuple(entry) for name, entry in value.items() if isinstance(entry, list)}
        return Progress(**value | tuples)

    def restore_model(self, step: int, config: ModelConfig, mesh: Mesh | None = None) -> LanguageModel:
        """Reads the parameters, without the optimizer state, onto one device or a mesh."""
        _, tables, dense = split_params(abstract_model(config, mesh))
        restored = self.restore(step, {"tables": tables, "dense": dense}, mesh)  # as in TrainState
        return merge_params(config, mesh, restored["tables"], restored["dense"])

    def restore_optimizer(
        self, step: int, model: ModelConfig, train: TrainConfig, mesh: Mesh | None = None
    ) -> dict[str, Any] | None:
        """Reads `TrainState.opt_state` for the optimizer of `train`; None if the checkpoint has none for it."""
        _, tables, dense = split_params(abstract_model(model, mesh))
        abstract = {"opt_state": jax.eval_shape(partial(initial_opt_state, config=train), tables, dense)}
        names = set(_named(abstract))
        if not names or not names <= set(self._stored(step)):
            return None
        return self.restore(step, abstract, mesh)["opt_state"]

    def restore(self, step: int, abstract: Any, mesh: Mesh | None = None) -> Any:
        """Reads a `TrainState`, or a tree with some of its parts, of given shapes (as from `jax.eval_shape`).

        Args:
          step: of the checkpoint, which may have been written on another mesh.
          abstract: as it lies on `mesh`.
          mesh: to read it onto; None for one device.

        Raises:
          InputError: the arrays are damaged, or have other shapes.
        """
        named = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(name, leaf.ndim, mesh))
            for name, leaf in _named(abstract).items()
        }
        restore_args = ocp.checkpoint_utils.construct_restore_args(named)
        for name, restore_arg in restore_args.items():
            if sharded_dim(name, named[name].ndim):  # padded anew
                restore_args[name] = dataclasses.replace(restore_arg, strict=False)
        args = ocp.args.PyTreeRestore(named, restore_args=restore_args, partial_restore=True)
        try:
            stored, before = self._stored(step), self.progress(step).mesh
            for name, leaf in named.items():
                found = stored[name].shape if name in stored else None
                if found is None or not fits(name, leaf.shape, mesh_shape(mesh), found, before):
                    raise InputError(
                        f"{self.directory / str(step)} does not fit the model's config: expected {name} of shape"
                        f" {leaf.shape}. Received: {found or 'nothing'}."
                    )
            reader = self.own_arrays if mesh is None else self.arrays
            arrays = reader.restore(self.directory / str(step) / STATE_DIRECTORY, args=args)
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise anything on a damaged file
            if is_peer_death(error):
                raise
            raise InputError(f"{self.directory / str(step)} is damaged: {reason(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in named])

    def _stored(self, step: int) -> dict[str, Any]:
        """Returns the metadata of the arrays by name."""
        return self.own_arrays.metadata(self.directory / str(step) / STATE_DIRECTORY).item_metadata.tree


def _delete(path: Path) -> None:
    """Deletes a directory; a process that is killed meanwhile leaves nothing that looks like a checkpoint."""
    doomed = path if path.suffix == ".partial" else path.rename(path.with_name(path.name + ".partial"))
    shutil.rmtree(doomed)


def _named(tree: Any) -> dict[str, Any]:
    """Flattens a tree to names such as "dense/lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {leaf_name(path): leaf for path, leaf in leaves}
