"""Settings of glibc's malloc: keeps freed memory for the next training step, or returns it to the system."""

import ctypes
import os
import platform
import sys

# for mallopt, from glibc's malloc.h: all threads share one heap, which holds large blocks, too, and does not shrink
KEEP_FREED_MEMORY = {-8: 1, -4: 0, -1: 2**31 - 1}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD


def keep_freed_memory() -> bool:
    """Lets glibc keep the memory of one training step for the next, unless the environment configures malloc.

    XLA allocates the temporaries of each step anew. By default, glibc returns them to the system after the step, and
    on a processor a tenth of a step is spent on mapping them again.

    Returns:
      Whether memory is kept: not once JAX is imported, and not with other C libraries.
    """
    given = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if given or "jax" in sys.modules or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in KEEP_FREED_MEMORY.items()])


def return_freed_memory() -> None:
    """Returns freed memory to the system; does nothing with other C libraries."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
