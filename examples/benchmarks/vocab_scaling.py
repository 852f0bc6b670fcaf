"""Shows that a training step costs the same at any vocabulary size: time and temporary memory.

    python examples/benchmarks/vocab_scaling.py

The sizes are interleaved in random order, so that noise affects all of them alike. The floor is that of
the matrix products: 42 GFLOP per step at E 256, H 1024, B 32, T 35, S 1000, at the speed of a 2048 x 2048
product in the same run.
"""

import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from measure import interleaved, machine, matmul_speed, milliseconds, print_table

import jaxlm
from jaxlm.training.step import jit_train_step


def make_state(vocab_size: int, optimizer: str, batch_size: int) -> jaxlm.TrainState:
    """Makes a state of constants: the values do not matter here, and random ones take minutes to draw."""
    model = jaxlm.ModelConfig(vocab_size)
    config = jaxlm.TrainConfig(optimizer=optimizer, batch_size=batch_size)
    abstract = jax.eval_shape(lambda: jaxlm.TrainState.create(jaxlm.LanguageModel(model, rngs=nnx.Rngs(0)), config))

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(leaf.shape, 1e-3 if leaf.ndim else 0, leaf.dtype)

    return jax.tree.map(fill, abstract)


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
      repeats: Timed steps of each size.
    """
    rng = np.random.default_rng(0)
    states, batches, temporary = {}, {}, {}
    for size in vocab_sizes:
        # log-uniform words, as in Zipf's law
        words = np.exp(rng.random((batch_size, 36)) * np.log(size)).astype(np.int32).clip(0, size - 1)
        batches[size] = jaxlm.Batch(words[:, :-1], words[:, 1:])
        states[size] = make_state(size, optimizer, batch_size)
        compiled = jit_train_step.lower(states[size], batches[size], 1e-3).compile()
        temporary[size] = compiled.memory_analysis().temp_size_in_bytes

    def step(size: int) -> None:
        states[size], loss = jaxlm.train_step(states[size], batches[size], 1e-3)
        jax.block_until_ready((states[size].step, loss))

    times = interleaved({size: partial(step, size) for size in vocab_sizes}, repeats)
    config = jaxlm.ModelConfig(1)
    words = batch_size * 35
    lstm = words * 4 * config.hidden_size * (config.embedding_size + config.hidden_size)
    flop = 3 * 2 * (lstm + words * 1000 * config.hidden_size)
    speed = matmul_speed()
    print(f"{machine()}, {optimizer}")
    print(f"floor: {flop / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s = {1e3 * flop / speed:.0f} ms")
    first = statistics.median(times[vocab_sizes[0]])
    rows = []
    for size in vocab_sizes:
        median, table = statistics.median(times[size]), size * config.embedding_size * 4
        ratios = [f"{median / first:.3f}", f"{flop / speed / median:.0%}"]
        sizes = [f"{temporary[size] / 1e6:.0f}", f"{table / 1e6:.0f}"]
        rows.append([f"{size:,}", *milliseconds(times[size]), *ratios, *sizes])
    print_table(
        ["V", "median ms", "min ms", "ratio to first", "share of floor", "temporary MB", "smallest table MB"], rows
    )


if __name__ == "__main__":
    tyro.cli(main)
