"""Times what a checkpoint costs at a large vocabulary: saving, verifying, restoring, and memory.

    python examples/benchmarks/checkpoint.py

The floor of a save is a copy of as many bytes to the disk.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure import machine, print_table
from problem import Problem, ProblemOptions

import jaxlm
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.finite import not_finite
from jaxlm.runs.progress import Progress


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_floor(path: Path, size: int) -> None:
    """Writes as many bytes as a checkpoint has."""
    block = np.ones(1 << 26, np.uint8)
    with path.open("wb") as file:
        for start in range(0, size, block.size):
            file.write(block[: size - start].data)
    path.unlink()


def main(
    problem: ProblemOptions = Problem(optimizer="adam"),  # noqa: B008
    save_minutes: float = jaxlm.ScheduleConfig.save_minutes,
    repeats: int = 3,
) -> None:
    """Prints a table.

    Args:
      problem: Sizes of the model; the moments of the optimizer are saved, too.
      save_minutes: Minutes between checkpoints, for the share of time.
      repeats: Timed calls of each.
    """
    state, abstract = problem.state(), jax.eval_shape(problem.state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.number))
    with tempfile.TemporaryDirectory() as name:
        checkpoints, steps = Checkpoints(Path(name)), iter(range(1, 99))
        not_finite(state)  # zeros take no memory until they are read
        before = peak_megabytes()
        calls: dict[str, Callable[[], object]] = {
            "write as many bytes": lambda: write_floor(Path(name) / "floor", size),
            "look for numbers that are not finite": lambda: not_finite(state),
            "save, with checksums": lambda: checkpoints.save(next(steps), state, Progress(0.0)),
            "verify": lambda: Checkpoints(Path(name)).latest_step(),
            "restore": lambda: jax.block_until_ready(checkpoints.restore(checkpoints.steps()[0], abstract).tables),
        }
        seconds: dict[str, list[float]] = {label: [] for label in calls}
        peaks = {}
        for _ in range(repeats):
            for label, call in calls.items():
                begin = time.perf_counter()
                call()
                seconds[label].append(time.perf_counter() - begin)
                peaks.setdefault(label, peak_megabytes() - before)
    medians = {label: float(np.median(times)) for label, times in seconds.items()}
    cost = medians["save, with checksums"] + medians["look for numbers that are not finite"]
    print(machine("orbax-checkpoint"))
    print(
        f"{problem}: {size / 1e6:,.0f} MB; every {save_minutes:g} minutes:"
        f" {cost / (60 * save_minutes + cost):.1%} of the time, {size / 1e6 / save_minutes:,.0f} MB per minute"
    )
    rows = [
        [label, f"{median:.2f}", f"{size / 1e6 / median:,.0f}", f"{peaks[label]:,.0f}"]
        for label, median in medians.items()
    ]
    print_table(["what", "median s", "MB/s", "peak memory so far, MB above the state"], rows)


if __name__ == "__main__":
    tyro.cli(main)
