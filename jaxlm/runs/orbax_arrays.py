"""Arrays on disk through Orbax: one plain file per array, read onto one device or onto a mesh of any shape."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jaxlm.errors import InputError, reason
from jaxlm.parallel.mesh import Mesh, mesh_shape, sharded_dim, spec_of
from jaxlm.parallel.processes import is_peer_death
from jaxlm.quiet import quiet


class OrbaxArrays:
    """Writes and reads named arrays.

    Args:
      processes: those that read and write the arrays together.
    """

    def __init__(self, processes: MultiprocessingOptions):
        # one plain file per array: floats do not compress, and trying to takes longer than the disk
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, multiprocessing_options=processes)
        self.checkpointer = ocp.Checkpointer(handler, multiprocessing_options=processes)

    def write(self, directory: Path, arrays: dict[str, jax.Array]) -> None:
        """Writes arrays into a directory that does not exist yet."""
        with quiet("absl", "asyncio"):  # which warn at every save, and print tracebacks of errors that are also raised
            self.checkpointer.save(directory, args=ocp.args.PyTreeSave(arrays))

    def stored(self, directory: Path) -> dict[str, Any]:
        """Returns the metadata of the arrays in a directory, by name."""
        return self.checkpointer.metadata(directory).item_metadata.tree

    def read(
        self, directory: Path, named: dict[str, Any], before: tuple[int, int], mesh: Mesh | None
    ) -> dict[str, jax.Array]:
        """Reads some arrays of a directory.

        Args:
          directory: with the arrays.
          named: shape and dtype of each array on `mesh`, by name.
          before: shape of the mesh that they were written on.
          mesh: devices to place them on; None for JAX's default device.

        Raises:
          InputError: an array is missing, is damaged, or has another shape.
        """
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(name, leaf.ndim, mesh))
            for name, leaf in named.items()
        }
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        for name, restore_arg in restore_args.items():
            if sharded_dim(name, abstract[name].ndim):  # padded anew
                restore_args[name] = dataclasses.replace(restore_arg, strict=False)
        args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        try:
            self._check_shapes(directory, abstract, before, mesh_shape(mesh))
            return self.checkpointer.restore(directory, args=args)
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise anything on a damaged file
            if is_peer_death(error):
                raise
            raise InputError(f"{directory} is damaged: {reason(error)}") from error

    def _check_shapes(
        self, directory: Path, abstract: dict[str, Any], before: tuple[int, int], mesh: tuple[int, int]
    ) -> None:
        stored = self.stored(directory)
        for name, leaf in abstract.items():
            found = stored[name].shape if name in stored else None
            if found is None or not _fits(name, leaf.shape, mesh, found, before):
                raise InputError(
                    f"{directory} does not fit the model's config: expected {name} of shape {leaf.shape}."
                    f" Received: {found or 'nothing'}."
                )


def require_space(directory: Path, sizes: Iterable[int]) -> None:
    """Reserves disk space for files of some sizes in a directory, and releases it again.

    A write of TensorStore that fails midway prints a traceback for each array, so space is checked first.

    Raises:
      OSError: the disk, a quota or a limit of the process does not allow these files.
    """
    with tempfile.TemporaryDirectory(dir=directory) as reserved:
        for number, size in enumerate(sizes):
            with (Path(reserved) / str(number)).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, size))


def _sharding(name: str, ndim: int, mesh: Mesh | None) -> jax.sharding.Sharding:
    """Returns the sharding of an array of a `TrainState` on a mesh, or on JAX's default device."""
    if mesh is None:
        (default,) = jax.device_put(np.float32(0)).devices()
        return jax.sharding.SingleDeviceSharding(default)
    return jax.sharding.NamedSharding(mesh, spec_of(name, ndim, mesh))


def _fits(
    name: str, shape: tuple[int, ...], mesh: tuple[int, int], found: tuple[int, ...], before: tuple[int, int]
) -> bool:
    """Returns whether two shapes are of one array, apart from the padding for two meshes."""
    dim = sharded_dim(name, len(shape))
    if not dim or len(shape) != len(found):
        return found == shape or name == "key"  # which is stored as its words
    parts = [size[1] if dim == "rows" else math.prod(size) for size in (mesh, before)]
    lowest = max(shape[0] - parts[0], found[0] - parts[1])
    return shape[1:] == found[1:] and lowest < min(shape[0], found[0])
