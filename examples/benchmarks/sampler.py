"""Times the candidate samplers beside TensorFlow's log-uniform op, in one run.

    python examples/benchmarks/sampler.py

A draw needs 64 random bits and one look at what was drawn before. The floor in the table is the time of the
random bits alone.
"""

import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import tyro
from measure import interleaved, machine, milliseconds, print_table

from jaxlm import candidate_sampling as sampling


def tensorflow_op(labels: np.ndarray, num_sampled: int, range_max: int):
    classes = tf.constant(labels, tf.int64)
    draw = tf.function(
        lambda: tf.random.log_uniform_candidate_sampler(classes, 1, num_sampled, True, range_max, seed=1)
    )
    return lambda: [value.numpy() for value in draw()]


def compiled(sample, *arguments):
    """Returns a call that draws with a new key each time, as TensorFlow's op does."""
    draw = jax.jit(lambda key, *arguments: (sample(jax.random.fold_in(key, 0), *arguments), jax.random.split(key)[0]))
    state = {"key": jax.random.key(0)}

    def call() -> None:
        values, state["key"] = jax.block_until_ready(draw(state["key"], *arguments))

    return call


def main(
    sizes: tuple[tuple[int, int], ...] = ((200_000, 1000), (793_471, 8192), (10_000_000, 8192)),
    num_labels: int = 1120,
    repeats: int = 200,
) -> None:
    """Prints a table.

    Args:
      sizes: Pairs of vocabulary size and number of sampled classes.
      num_labels: True classes per call.
      repeats: Timed calls of each.
    """
    rows = []
    for range_max, num_sampled in sizes:
        labels = np.random.default_rng(0).integers(0, range_max, (num_labels, 1)).astype(np.int32)
        ids = jnp.asarray(labels)
        table = sampling.unigram_table(1.0 / np.arange(1, range_max + 1))
        counts = sampling.learned_unigrams(range_max)
        arguments = (num_sampled, True, range_max)
        functions = {
            "tf.random.log_uniform_candidate_sampler": tensorflow_op(labels, num_sampled, range_max),
            "log_uniform": compiled(lambda k, x, a=arguments: sampling.log_uniform_candidate_sampler(k, x, *a), ids),
            "uniform": compiled(lambda k, x, a=arguments: sampling.uniform_candidate_sampler(k, x, *a), ids),
            "fixed_unigram": compiled(
                lambda k, x, t, a=arguments: sampling.fixed_unigram_candidate_sampler(k, x, *a, t), ids, table
            ),
            "learned_unigram": compiled(
                lambda k, x, s, a=arguments: sampling.learned_unigram_candidate_sampler(k, x, *a, s)[0], ids, counts
            ),
            "64 random bits per candidate": compiled(lambda k, n=num_sampled: jax.random.bits(k, (2, n), jnp.uint32)),
        }
        times = interleaved(functions, repeats)
        theirs = statistics.median(times["tf.random.log_uniform_candidate_sampler"])
        for name, seconds in times.items():
            ratio = statistics.median(seconds) / theirs
            rows.append([f"{range_max:,}", f"{num_sampled:,}", name, *milliseconds(seconds), f"{ratio:.2f}"])
    print(machine("tensorflow"))
    print_table(["V", "S", "sampler", "median ms", "min ms", "ratio to TensorFlow"], rows)


if __name__ == "__main__":
    tyro.cli(main)
