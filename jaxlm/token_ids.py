"""Checks of word ids that do not wait for a device, and their conversion to int32."""

import mmap
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import InputError, require

Ids = jax.Array | np.ndarray
INT32 = np.iinfo(np.int32)
BLOCK = 1 << 22  # ids per block: a memory-mapped text is never read as a whole


def check_ids(argument: str, ids: jax.Array | ArrayLike, vocab_size: int, ndim: int = 1) -> Ids:
    """Returns ids as an array, after checking their shape, their type and, on the host, their range.

    Lists and NumPy arrays are checked as a whole. The values of a JAX array are not read, since that would wait
    for the device; the functions that look them up turn an id out of range into NaN.

    Raises:
      InputError: the shape, the type or a value does not fit; names the argument of the caller.
    """
    found: Ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    require(found.dtype.kind not in "US", argument, "ids, as from `Vocabulary.encode`", "text")
    shape = "[N]" if ndim == 1 else "[batch_size, sequence_length]"
    require(found.ndim == ndim, argument, f"integer ids of shape {shape}", f"shape {found.shape}")
    require(found.dtype.kind in "iu", argument, f"integer ids of shape {shape}", f"dtype {found.dtype}")
    if isinstance(found, np.ndarray) and found.size:
        lowest, highest = id_range(found)
        if lowest < 0 or highest >= vocab_size:
            raise InputError(
                f"Invalid `{argument}`: expected ids from 0 to {vocab_size - 1}, the vocabulary."
                f" Received: {lowest} to {highest}."
            )
    return found


def as_int32(argument: str, ids: jax.Array | ArrayLike) -> Ids:
    """Returns integer ids as int32, because sums and comparisons of ids overflow in a narrower type.

    An id that int32 does not hold stays out of range: it becomes the lowest or the highest int32. The values of a JAX
    array are not read.

    Raises:
      InputError: ids are not integers; names the argument of the caller.

    >>> as_int32("labels", np.array([3, 2**32 + 5])).tolist()
    [3, 2147483647]
    """
    found: Ids = ids if isinstance(ids, jax.Array | np.ndarray) else _as_array(ids)
    require(found.dtype.kind in "iu", argument, "integer ids", f"dtype {found.dtype}")
    if not np.can_cast(found.dtype, np.int32):
        found = found.clip(0 if found.dtype.kind == "u" else INT32.min, INT32.max)
    return found if found.dtype == np.int32 else found.astype(np.int32)


def _as_array(ids: ArrayLike) -> Ids:
    try:
        return jnp.asarray(ids)  # a list may hold tracers
    except OverflowError:  # a number that int32 does not hold
        return np.asarray(ids)


def id_range(ids: np.ndarray) -> tuple[int, int]:
    """Returns the lowest and the highest of at least one id."""
    return min(int(block.min()) for block in blocks(ids)), max(int(block.max()) for block in blocks(ids))


def blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yields ids in blocks along the first dimension. Of a mapped file, no more than a block stays in memory."""
    mapped = getattr(ids, "_mmap", None) if isinstance(ids, np.memmap) and ids.mode == "r" else None
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK]
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
