"""Shows that a training step costs the same at any vocabulary size: time and temporary memory.

    python examples/benchmarks/vocab_scaling.py

The sizes are interleaved in random order, so that noise affects all of them alike. The floor is that of the matrix
products, at the speed of a 2048 x 2048 product in the same run.
"""

import dataclasses
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import tyro
from measure import interleaved, machine, matmul_speed, milliseconds, print_table, set_equal_terms
from problem import Problem, ProblemOptions

import jaxlm
from jaxlm.training.step import jit_train_step


def constant_state(problem: Problem) -> jaxlm.TrainState:
    """Returns a state of constants: the values do not matter here, and random ones take minutes to draw."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(leaf.shape, 1e-3 if leaf.ndim else 0, leaf.dtype)

    return jax.tree.map(fill, jax.eval_shape(problem.state))


def main(
    vocab_sizes: tuple[int, ...] = (10_000, 200_000, 1_000_000),
    problem: ProblemOptions = Problem(),  # noqa: B008
    repeats: int = 15,
) -> None:
    """Prints a table.

    Args:
      vocab_sizes: Vocabulary sizes to compare.
      problem: The other sizes; Adam takes 15 GB at a million words.
      repeats: Timed steps of each size.
    """
    states, batches, temporary = {}, {}, {}
    for size in vocab_sizes:
        sized = dataclasses.replace(problem, vocab_size=size)
        (words,) = sized.texts(1)
        batches[size] = jaxlm.Batch(words[:, :-1], words[:, 1:])
        states[size] = constant_state(sized)
        compiled = jit_train_step.lower(states[size], batches[size], 1e-3).compile()
        temporary[size] = compiled.memory_analysis().temp_size_in_bytes

    def step(size: int) -> None:
        states[size], loss = jaxlm.train_step(states[size], batches[size], 1e-3)
        jax.block_until_ready((states[size].step, loss))

    times = interleaved({size: partial(step, size) for size in vocab_sizes}, repeats)
    dtype = states[vocab_sizes[0]].config.compute_dtype
    speed = matmul_speed(dtype)
    floor = problem.flop / speed
    print(f"{machine()}\n{problem}")
    print(f"{dtype} floor: {problem.flop / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s = {1e3 * floor:.0f} ms")
    first = statistics.median(times[vocab_sizes[0]])
    rows = []
    for size in vocab_sizes:
        median, table = statistics.median(times[size]), size * problem.embedding_size * 4
        ratios = [f"{median / first:.3f}", f"{floor / median:.0%}"]
        sizes = [f"{temporary[size] / 1e6:.0f}", f"{table / 1e6:.0f}"]
        rows.append([f"{size:,}", *milliseconds(times[size]), *ratios, *sizes])
    print_table(
        ["V", "median ms", "min ms", "ratio to first", "share of floor", "temporary MB", "smallest table MB"], rows
    )


if __name__ == "__main__":
    set_equal_terms()
    tyro.cli(main)
