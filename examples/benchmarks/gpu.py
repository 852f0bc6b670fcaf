"""Shows how long a GPU works in a training step, which kernels it runs, and what it copies.

    python examples/benchmarks/gpu.py --batch-size 32

Steps follow each other without waiting, with batches from the host, as `jaxlm.train_batches` makes them, with blocks of
batches, as in `jaxlm train`, and with batches that lie on the device already. Where the host's share is the whole time,
the GPU waits for the host, which launches its kernels. `train_step.py --steps 20` times PyTorch beside it.
"""

import collections
import statistics
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
from jaxlm.data.batch_blocks import BatchBlocks
from jaxlm.data.batches import Batch
from jaxlm.training.step import step_in_block

Run = Callable[[jaxlm.TrainState], tuple[jaxlm.TrainState, jax.Array]]  # to the state and the loss after some steps
Times = dict[str, list[tuple[float, float]]]  # ms per step, of which the host works, by where the batches are


def on_batches(texts: list[tuple[Batch, float]]) -> Run:
    """Returns what runs per step on each batch, with its learning rate, and waits for none."""

    def run(state: jaxlm.TrainState) -> tuple[jaxlm.TrainState, jax.Array]:
        for batch, learning_rate in texts:
            state, loss = jaxlm.train_step(state, batch, learning_rate)
        return state, loss

    return run


def in_blocks(tokens: np.ndarray, config: jaxlm.TrainConfig, steps: int) -> Run:
    """Returns what runs the next steps of a text, as `jaxlm train` does."""
    blocks = BatchBlocks(tokens, config, None)
    schedule = jax.jit(lambda steps: jnp.full(steps.shape, 1e-3))

    def run(state: jaxlm.TrainState) -> tuple[jaxlm.TrainState, jax.Array]:
        first = int(state.step)
        for step in range(first, first + steps):
            state, loss = step_in_block(state, blocks.with_step(step, schedule))
        return state, loss

    return run


def time_steps(
    state: jaxlm.TrainState, ways: dict[str, Run], steps: int, repeats: int
) -> tuple[jaxlm.TrainState, Times]:
    """Times each way to run so many steps, in turn; the first turn is not counted."""
    times: Times = {kind: [] for kind in ways}
    for _ in range(repeats + 1):
        for kind, run in ways.items():
            start = time.perf_counter()
            state, loss = run(state)
            host = time.perf_counter() - start
            float(loss)
            times[kind].append((1e3 * (time.perf_counter() - start) / steps, 1e3 * host / steps))
    return state, {kind: each[1:] for kind, each in times.items()}


def kernels(state: jaxlm.TrainState, run: Run) -> tuple[collections.Counter, collections.Counter]:
    """Returns nanoseconds and runs of each kernel and kind of copy, in all steps together."""
    nanoseconds, runs = collections.Counter[str](), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            float(run(state)[1])
        (path,) = Path(directory).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            streams = [line for line in plane.lines if line.name.startswith("Stream")] if "GPU" in plane.name else []
            for event in (event for line in streams for event in line.events):
                nanoseconds[event.name] += event.duration_ns
                runs[event.name] += 1
    return nanoseconds, runs


def main(
    problem: ProblemOptions = Problem(),  # noqa: B008
    steps: int = 50,
    repeats: int = 5,
    top: int = 20,
) -> None:
    """Prints two tables.

    Args:
      problem: Sizes of the step.
      steps: Steps in a row.
      repeats: Timed turns of so many steps.
      top: Kernels to show, those that take longest.
    """
    state, words = problem.state(), problem.texts(steps)
    texts = [(Batch(text[:, :-1], text[:, 1:]), 1e-3) for text in words]
    ways = {
        "from the host": on_batches(texts),
        "in blocks, as in `jaxlm train`": in_blocks(words.ravel(), problem.train_config, steps),
        "on the device already": on_batches(jax.device_put(texts)),
    }
    state, times = time_steps(state, ways, steps, repeats)
    print(f"{machine()}\n{problem}")
    rows = []
    for kind, each in times.items():
        total, host = (statistics.median(column) for column in zip(*each, strict=True))
        rows.append([kind, f"{total:.3f}", f"{host:.3f}", f"{1e3 * problem.words / total:,.0f}"])
    print_table(["batches", "median ms per step", "of which the host works", "words/s"], rows)
    nanoseconds, runs = kernels(state, ways["in blocks, as in `jaxlm train`"])
    busy = sum(nanoseconds.values()) / 1e6 / steps
    print(f"\nper step, the GPU: {sum(runs.values()) / steps:.0f} kernels and copies, {busy:.3f} ms")
    copies = {name: f"{count / steps:g}" for name, count in runs.items() if "memcpy" in name.lower()}
    print(f"copies per step: {copies}")
    longest = nanoseconds.most_common(top)
    rows = [[name, f"{runs[name] / steps:g}", f"{total / 1e3 / steps:.1f}"] for name, total in longest]
    print_table(["kernel", "runs per step", "microseconds per step"], rows)


if __name__ == "__main__":
    tyro.cli(main)
