"""Shows that a training step costs the same at any vocabulary size: time and temporary memory.

    python examples/benchmarks/vocab_scaling.py

Interleaves the sizes in random order, so that a noisy machine is noisy for all of them alike. The
floor is that of the matrix products: 42 GFLOP a step at E 256, H 1024, B 32, T 35, S 1000, over the
speed of a 2048 x 2048 product in the same run.
"""

import platform
import random
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import jaxlm


def make_state(vocab_size: int, optimizer: str, batch_size: int) -> jaxlm.TrainState:
    """A state of constants: nothing here depends on the values, and random ones take minutes to draw."""
    model = jaxlm.ModelConfig(vocab_size)
    config = jaxlm.TrainConfig(optimizer=optimizer, batch_size=batch_size)
    abstract = jax.eval_shape(lambda: jaxlm.TrainState.create(jaxlm.LanguageModel(model, rngs=nnx.Rngs(0)), config))

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(leaf.shape, 1e-3 if leaf.ndim else 0, leaf.dtype)

    return jax.tree.map(fill, abstract)


def matmul_speed() -> float:
    """Returns the speed of the best of ten 2048 x 2048 float32 products, in FLOP/s."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times[1:])


def main(
    vocab_sizes: tuple[int, ...] = (10_000, 200_000, 1_000_000),
    optimizer: str = "adagrad",
    batch_size: int = 32,
    repeats: int = 15,
) -> None:
    """Prints a table.

    Args:
      vocab_sizes: Vocabulary sizes to compare.
      optimizer: adagrad, adam or sgd; Adam takes 15 GB at a million words.
      batch_size: Streams of text.
      repeats: Steps timed of each size.
    """
    rng = np.random.default_rng(0)
    states, batches, temporary = {}, {}, {}
    for size in vocab_sizes:
        # log-uniform words, as Zipf has them
        words = np.exp(rng.random((batch_size, 36)) * np.log(size)).astype(np.int32).clip(0, size - 1)
        batches[size] = words[:, :-1], words[:, 1:]
        states[size] = make_state(size, optimizer, batch_size)
        compiled = jaxlm.train_step.lower(states[size], *batches[size], 1e-3).compile()
        temporary[size] = compiled.memory_analysis().temp_size_in_bytes
    times: dict[int, list[float]] = {size: [] for size in vocab_sizes}
    order = list(vocab_sizes) * (repeats + 2)
    for size in random.Random(0).sample(order, len(order)):
        start = time.perf_counter()
        states[size], loss = jaxlm.train_step(states[size], *batches[size], 1e-3)
        jax.block_until_ready((states[size].step, loss))
        times[size].append(time.perf_counter() - start)
    config = jaxlm.ModelConfig(1)
    words = batch_size * 35
    lstm = words * 4 * config.hidden_size * (config.embedding_size + config.hidden_size)
    flop = 3 * 2 * (lstm + words * 1000 * config.hidden_size)
    speed = matmul_speed()
    print(f"{platform.processor() or platform.machine()}, {jax.default_backend()}, jax {jax.__version__}, {optimizer}")
    print(f"floor: {flop / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s = {1e3 * flop / speed:.0f} ms")
    print("| V | median ms | min ms | ratio to first | share of floor | temporary MB | smallest table MB |")
    print("|---|---|---|---|---|---|---|")
    first = statistics.median(times[vocab_sizes[0]][2:])
    for size in vocab_sizes:
        median = statistics.median(times[size][2:])
        table = size * config.embedding_size * 4
        print(
            f"| {size:,} | {1e3 * median:.0f} | {1e3 * min(times[size]):.0f} | {median / first:.3f} |"
            f" {flop / speed / median:.0%} | {temporary[size] / 1e6:.0f} | {table / 1e6:.0f} |"
        )


if __name__ == "__main__":
    tyro.cli(main)
