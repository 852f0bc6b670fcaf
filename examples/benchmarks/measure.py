"""Equal terms for all peers, interleaved timing, the speed of matrix products on this machine, and tables."""

import importlib.metadata
import itertools
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import jax

from jaxlm.config import ComputeDtype
from jaxlm.matmul import dot_f32, product_precision

MATMUL_FLOP = 2 * 2048**3
PACKAGES = {"tensorflow": ("tf-", "keras-"), "torch": ("torch-",)}  # of the methods whose names start so
THREADS = str(len(os.sched_getaffinity(0)))
# glibc keeps freed memory, as `jaxlm train` asks it to, and all cores compute
EQUAL_TERMS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "OMP_NUM_THREADS": THREADS,
    "TF_NUM_INTRAOP_THREADS": THREADS,
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def set_equal_terms() -> None:
    """Restarts this script with `EQUAL_TERMS` in its environment, which glibc and OpenMP read when a process starts."""
    if not EQUAL_TERMS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | EQUAL_TERMS)


def interleaved(functions: dict[Hashable, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict:
    """Times functions in random order, so that noise affects all of them alike.

    Args:
      functions: calls to time; each must block until its result is ready.
      repeats: timed calls of each.
      warm_up: untimed calls of each before.

    Returns:
      The seconds of the calls of each function.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    order = list(functions) * repeats
    times: dict = {name: [] for name in functions}
    for name in random.Random(0).sample(order, len(order)):
        start = time.perf_counter()
        functions[name]()
        times[name].append(time.perf_counter() - start)
    return times


def matmul(dtype: ComputeDtype = "float32", size: int = 2048) -> Callable[[], object]:
    """Returns a call of one square product with float32 sums; `MATMUL_FLOP` of them at the default size."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    with product_precision(dtype):
        compiled = jax.jit(dot_f32).lower(x, x).compile()
    return lambda: compiled(x, x).block_until_ready()


def matmul_speed(dtype: ComputeDtype = "float32") -> float:
    """Returns the speed of the best of ten square products, in FLOP/s: 2048 wide, on a GPU 8192."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    return 2 * size**3 / min(interleaved({0: matmul(dtype, size)}, 10)[0])


def machine(*packages: str) -> str:
    """Returns one line about the hardware and the versions of packages."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    device = "cpu" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", *packages))
    terms = f"; freed memory kept and {THREADS} threads for all" if EQUAL_TERMS.items() <= os.environ.items() else ""
    return f"{processor}, {os.cpu_count()} cores, {device}, Python {platform.python_version()}, {versions}{terms}"


def packages_of(methods: Iterable[str]) -> list[str]:
    """Returns the packages of methods such as "torch-sampled", for `machine`."""
    return [package for package, starts in PACKAGES.items() if any(method.startswith(starts) for method in methods)]


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table, each row as soon as it is there."""
    for row in itertools.chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def milliseconds(times: Sequence[float]) -> list[str]:
    """Returns the median and the minimum, as the tables print them."""
    return [f"{1e3 * statistics.median(times):.3g}", f"{1e3 * min(times):.3g}"]
