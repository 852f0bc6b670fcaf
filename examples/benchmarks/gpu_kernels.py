"""Shows what a GPU does in a training step: how long it works, which kernels it runs, and what it copies.

    python examples/benchmarks/gpu_kernels.py --batch-size 32

Steps follow each other without waiting, with batches from the host, as `jaxlm.train_batches` makes them, with blocks of
batches, as in `jaxlm train`, and with batches that lie on the device already. Where the host's share is the whole time,
the GPU waits for the host, which launches its kernels.
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
from flax import nnx
from measure import machine, print_table

import jaxlm
from jaxlm.data.batch_blocks import BatchBlocks
from jaxlm.data.batches import Batch
from jaxlm.training.step import step_in_block

Run = Callable[[jaxlm.TrainState], tuple[jaxlm.TrainState, jax.Array]]  # to the state and the loss after some steps
Times = dict[str, list[tuple[float, float]]]  # ms a step, of which the host works, by where the batches are


def on_batches(texts: list[tuple[Batch, float]]) -> Run:
    """Returns what runs a step on each batch, with its learning rate, and waits for none."""

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
    vocab_size: int = 200_000,
    embedding_size: int = 256,
    hidden_size: int = 1024,
    projection_size: int = 0,
    num_sampled: int = 1000,
    batch_size: int = 32,
    sequence_length: int = 35,
    steps: int = 50,
    repeats: int = 5,
    top: int = 20,
) -> None:
    """Prints two tables.

    Args:
      vocab_size: Number of words.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      projection_size: Width of a bottleneck between LSTM and softmax; 0 for none.
      num_sampled: Sampled classes.
      batch_size: Streams of text.
      sequence_length: Time steps.
      steps: Steps in a row.
      repeats: Timed turns of so many steps.
      top: Kernels to show, those that take longest.
    """
    config = jaxlm.TrainConfig(
        batch_size=batch_size, sequence_length=sequence_length, num_sampled=num_sampled, optimizer="adagrad"
    )
    model = jaxlm.ModelConfig(vocab_size, embedding_size, hidden_size, projection_size=projection_size)
    state = jaxlm.TrainState.create(jaxlm.LanguageModel(model, rngs=nnx.Rngs(0)), config)
    rng = np.random.default_rng(0)
    shape = (steps, batch_size, sequence_length + 1)
    words = np.exp(rng.random(shape) * np.log(vocab_size)).astype(np.int32) - 1  # log-uniform, as in Zipf's law
    texts = [(Batch(text[:, :-1], text[:, 1:]), 1e-3) for text in words]
    ways = {
        "from the host": on_batches(texts),
        "in blocks, as in `jaxlm train`": in_blocks(words.ravel(), config, steps),
        "on the device already": on_batches(jax.device_put(texts)),
    }
    state, times = time_steps(state, ways, steps, repeats)
    nanoseconds, runs = kernels(state, ways["in blocks, as in `jaxlm train`"])
    print(machine())
    rows = []
    for kind, each in times.items():
        total, host = (statistics.median(column) for column in zip(*each, strict=True))
        rows.append([kind, f"{total:.3f}", f"{host:.3f}", f"{1e3 * batch_size * sequence_length / total:,.0f}"])
    print_table(["batches", "median ms a step", "of which the host works", "words/s"], rows)
    busy = sum(nanoseconds.values()) / 1e6 / steps
    print(f"\na step of the GPU: {sum(runs.values()) / steps:.0f} kernels and copies, {busy:.3f} ms")
    copies = {name: f"{count / steps:g}" for name, count in runs.items() if "memcpy" in name.lower()}
    print(f"copies a step: {copies}")
    longest = nanoseconds.most_common(top)
    rows = [[name, f"{runs[name] / steps:g}", f"{total / 1e3 / steps:.1f}"] for name, total in longest]
    print_table(["kernel", "runs a step", "microseconds a step"], rows)


if __name__ == "__main__":
    tyro.cli(main)
