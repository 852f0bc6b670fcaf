"""Orbax as jaxlm uses it: one plain file per array, quiet, onto one device or a mesh."""

import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jaxlm.parallel.mesh import Mesh, sharded_dim, spec_of


def checkpointer(processes: MultiprocessingOptions) -> ocp.Checkpointer:
    """Makes what reads and writes arrays, for some of the processes."""
    # one plain file per array: floats do not compress, and trying to takes longer than the disk
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, multiprocessing_options=processes)
    return ocp.Checkpointer(handler, multiprocessing_options=processes)


def ignore_closed_loops(unraisable: Any) -> None:
    """Prints unraisable errors as usual, except those of TensorStore writes that outlive a failed save."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Orbax: it logs harmless warnings at every save, and tracebacks of errors that it also raises."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [each.level for each in loggers], sys.unraisablehook
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def sharding_of(name: str, ndim: int, mesh: Mesh | None) -> jax.sharding.Sharding:
    """Returns where an array of a `TrainState` is read to: a mesh, or JAX's default device."""
    if mesh is None:
        (default,) = jnp.zeros(()).devices()
        return jax.sharding.SingleDeviceSharding(default)
    return jax.sharding.NamedSharding(mesh, spec_of(name, ndim, mesh))


def fits(
    name: str, shape: tuple[int, ...], mesh: tuple[int, int], found: tuple[int, ...], before: tuple[int, int]
) -> bool:
    """Returns whether two shapes are of one array, but for what makes its parts equal on two meshes."""
    cut = sharded_dim(name, len(shape))
    if not cut or len(shape) != len(found):
        return found == shape or name == "key"  # which is stored as its words
    parts = [size[1] if cut == "rows" else math.prod(size) for size in (mesh, before)]
    lowest = max(shape[0] - parts[0], found[0] - parts[1])
    return shape[1:] == found[1:] and lowest < min(shape[0], found[0])
