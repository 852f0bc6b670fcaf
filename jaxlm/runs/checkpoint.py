"""Checkpoints of a run: arrays and progress with checksums. Each checkpoint appears whole or not at all."""

import logging
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.options import MultiprocessingOptions

from jaxlm.errors import InputError, reason
from jaxlm.files import CHECKSUMS_FILE, readable_size, staged, verify_checksums, write_checksums
from jaxlm.parallel.mesh import Mesh, leaf_name, map_data
from jaxlm.parallel.processes import is_first, is_peer_death, wait_for_all
from jaxlm.runs.orbax_arrays import OrbaxArrays, require_space
from jaxlm.runs.progress import PROGRESS_FILE, Progress, read_progress, write_progress

CHECKPOINTS_DIRECTORY = "checkpoints"
STATE_DIRECTORY = "state"
PARTIAL = ".partial"  # suffix of a directory that is being written or deleted
STEP = r"0|[1-9][0-9]*"  # name of a checkpoint
KEPT = 2  # latest checkpoints that are kept, besides the best

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run: the latest two, to resume from, and the one with the lowest validation loss.

    On a CPU a save takes as long as the disk. On an accelerator the arrays are copied to the host, and written
    while training continues. Several processes write one checkpoint together, into a directory that all of them see.

    Args:
      directory: of the run.

    Raises:
      InputError: its path is not in UTF-8.
    """

    def __init__(self, directory: Path):
        self.directory = (directory / CHECKPOINTS_DIRECTORY).absolute()
        try:
            str(self.directory).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"The path {self.directory} is not in UTF-8, as checkpoints need; rename it.") from error
        self.arrays = OrbaxArrays(MultiprocessingOptions())  # of all processes
        self.local_arrays = OrbaxArrays(  # of this process, to read onto one of its devices
            MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        )
        self.intact: dict[int, bool] = {}  # checkpoints that were verified
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None  # the save that is under way

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Writes a checkpoint of a `TrainState`, or some of its parts, and deletes those that are no longer needed.

        Raises:
          OSError: it could not be written. On an accelerator, `wait` raises it, and the next save logs it.
        """
        try:
            self.wait()
        except OSError as error:
            logger.warning("%s; training continues", error)
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
        try:
            with self._new_directory(self.directory / str(step), arrays) as target:
                self.arrays.write(target / STATE_DIRECTORY, arrays)
                if is_first():
                    write_progress(target, progress)
                    write_checksums(target)
            self.intact[step] = True
            if is_first():
                self._prune()
            wait_for_all("checkpoint")
        except Exception as error:  # Orbax and TensorStore raise anything on a full disk
            if is_peer_death(error):
                raise
            raise OSError(f"checkpoint {step} could not be written: {reason(error)}") from error

    @contextmanager
    def _new_directory(self, path: Path, arrays: dict[str, Any]) -> Iterator[Path]:
        """Makes a directory in which all processes write; process 0 moves it into place."""
        if not is_first():
            wait_for_all("directory")
            yield path.with_name(path.name + PARTIAL)
            return
        self.directory.mkdir(exist_ok=True)
        sizes = [array.nbytes for array in arrays.values()]
        free = shutil.disk_usage(self.directory).free
        if sum(sizes) > free:
            raise InputError(f"it needs {readable_size(sum(sizes))}, and {readable_size(free)} are free")
        require_space(self.directory, sizes)
        if _is_checkpoint(path):  # a damaged one that was passed over
            _delete(path)
        elif path.exists():
            raise InputError(f"{path} is in its place and not a checkpoint; move it away")
        with staged(path) as target:
            target.mkdir()
            wait_for_all("directory")
            yield target

    def _prune(self) -> None:
        """Deletes checkpoints that are neither among the latest nor the best, and those cut off while written.

        Damaged ones do not count, and stay until training has passed their step. Other files and directories stay. A
        checkpoint that cannot be deleted only takes space.
        """
        steps, by_loss = self.steps(), self.by_loss()
        sound = [step for step in steps if self.intact.get(step, True)]  # as far as is known: nothing is read here
        best = [step for step in by_loss if step in sound][:1]
        kept = {*sound[:KEPT], *best, *(step for step in steps if step > sound[0])}
        cut_off = [path for path in self.directory.glob(f"*{PARTIAL}") if re.fullmatch(STEP, path.stem)]
        for path in [*cut_off, *(self.directory / str(step) for step in steps if step not in kept)]:
            if path.is_dir() and not path.is_symlink():
                try:
                    _delete(path)
                except OSError as error:
                    logger.warning("%s cannot be deleted (%s)", path, reason(error))

    def by_loss(self, limit: float = math.inf) -> list[int]:
        """Returns the steps that were evaluated to a loss of at most `limit`, the lowest validation loss first."""
        losses: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = self.progress(step).valid_loss
            except (InputError, OSError):
                self.is_intact(step)  # logs the damage
                continue
            if loss is not None and loss <= limit:
                losses[step] = loss
        return sorted(losses, key=losses.__getitem__)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, damaged ones included, the latest first."""
        if not self.directory.is_dir():
            return []
        return sorted((int(path.name) for path in self.directory.iterdir() if _is_checkpoint(path)), reverse=True)

    def is_intact(self, step: int) -> bool:
        """Checks a checkpoint against its checksums, and logs damage."""
        if step not in self.intact:
            try:
                verify_checksums(self.directory / str(step))
                self.intact[step] = True
            except (InputError, OSError) as error:
                self.intact[step] = False
                logger.warning("checkpoint %d is passed over: %s", step, error)
        return self.intact[step]

    def first_intact(self, steps: Iterable[int]) -> int | None:
        """Returns the first of some steps whose checkpoint is intact, or None."""
        return next(filter(self.is_intact, steps), None)

    def latest_step(self) -> int | None:
        """Returns the step of the latest intact checkpoint, or None if there are no checkpoints.

        Raises:
          InputError: all of them are damaged.
        """
        latest = self.first_intact(self.steps())
        if latest is None and self.steps():
            raise InputError(f"All checkpoints in {self.directory} are damaged; restore a copy, or start a new run.")
        return latest

    def best_step(self) -> int:
        """Returns the intact step with the lowest validation loss, or the latest if none was evaluated.

        Raises:
          InputError: there is no intact checkpoint.
        """
        best = self.first_intact(self.by_loss())
        best = self.latest_step() if best is None else best
        if best is None:
            raise InputError(f"{self.directory.parent} has no checkpoint yet; train longer with `jaxlm train`.")
        return best

    def progress(self, step: int) -> Progress:
        """Reads the progress of a checkpoint, after checking that it was not changed."""
        return read_progress(self.directory / str(step))

    def latest_progress(self) -> Progress | None:
        """Reads the progress of the latest checkpoint that has one; the arrays are not checked."""
        for step in self.steps():
            with suppress(InputError, OSError):  # a damaged one is passed over when its arrays are read
                return self.progress(step)
        return None

    def array_names(self, step: int) -> set[str]:
        """Returns the names of the arrays in a checkpoint, such as "tables/weights"."""
        return set(self.local_arrays.stored(self.directory / str(step) / STATE_DIRECTORY))

    def has(self, step: int, abstract: Any) -> bool:
        """Returns whether a checkpoint has each array of a `TrainState`, or of some of its parts, by name."""
        return _named(abstract).keys() <= self.array_names(step)

    def restore(self, step: int, abstract: Any, mesh: Mesh | None = None) -> Any:
        """Reads a `TrainState`, or some of its parts, that may have been saved on another mesh.

        `abstract` has the shapes on `mesh`, as from `jax.eval_shape`; without a mesh, on one device.

        Raises:
          InputError: the arrays are damaged, or have other shapes.
        """
        arrays = (self.local_arrays if mesh is None else self.arrays).read(
            self.directory / str(step) / STATE_DIRECTORY, _named(abstract), self.progress(step).mesh, mesh
        )
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in _named(abstract)])


def _is_checkpoint(path: Path) -> bool:
    """Returns whether jaxlm wrote a directory, which may have been damaged since."""
    parts = (STATE_DIRECTORY, PROGRESS_FILE, CHECKSUMS_FILE)
    return bool(re.fullmatch(STEP, path.name)) and any((path / name).exists() for name in parts)


def _delete(path: Path) -> None:
    """Deletes a directory; a process that is killed meanwhile leaves nothing that looks like a checkpoint."""
    doomed = path if path.suffix == PARTIAL else path.rename(path.with_name(path.name + PARTIAL))
    shutil.rmtree(doomed)


def _named(tree: Any) -> dict[str, Any]:
    """Flattens a tree to names such as "dense/lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {leaf_name(path): leaf for path, leaf in leaves}
