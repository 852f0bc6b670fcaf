"""Shows where the milliseconds of a training step go.

    python examples/benchmarks/step_parts.py

Each part runs by itself, on operands like those of a step, in turn with the others, in random order. They add up to
more than the step where XLA fuses across them. "Without products" replaces each product of the LSTM by an outer product
of one column and one row: what is left is the element-wise work of the loops and the way they store their results. Page
faults are those of memory that is mapped anew in each step.
"""

import dataclasses
import resource
import statistics
from collections.abc import Callable
from typing import Literal, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from measure import interleaved, machine, matmul_speed, milliseconds, print_table, set_equal_terms
from problem import Problem, ProblemOptions

import jaxlm
from jaxlm.candidate_sampling.samplers import log_uniform_candidate_sampler
from jaxlm.losses.class_rows import gather_rows, sampled_softmax_loss_of_rows
from jaxlm.model.lstm import lstm
from jaxlm.row_updates import RowGradient, sum_duplicates, update_rows
from jaxlm.training.optimizer import optimizer


class Part(NamedTuple):
    """A part of a step: a call that waits for its result, and the FLOP of its matrix products."""

    call: Callable[[], object]
    flop: int = 0


def outer_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `[M, N]` float32, of the first column of x `[M, K]` and the first row of y `[K, N]`."""
    return x[:, :1].astype(jnp.float32) * y[:1].astype(jnp.float32)


def whole_step(problem: Problem) -> Part:
    """One training step."""
    state, text = problem.state(), problem.texts(1)[0]

    def step() -> None:
        nonlocal state
        state, loss = jaxlm.train_step(state, (text[:, :-1], text[:, 1:]), 1e-3)
        jax.block_until_ready(loss)

    return Part(step, problem.flop)


def lstm_parts(problem: Problem) -> dict[str, Part]:
    """The LSTM over all time steps, with and without the products in its loops."""
    time, batch, hidden = problem.sequence_length, problem.batch_size, problem.hidden_size
    config = jaxlm.ModelConfig(10, problem.embedding_size, hidden)
    cell = jaxlm.LanguageModel(config, rngs=nnx.Rngs(0)).lstms[0]
    rng, dtype = np.random.default_rng(0), problem.compute_dtype
    inputs = jnp.asarray(rng.normal(size=(time, batch, problem.embedding_size)), jnp.float32)
    d_outputs = jnp.asarray(rng.normal(size=(time, batch, hidden)), jnp.float32)
    carry = (jnp.zeros((batch, hidden)), jnp.zeros((batch, hidden)))
    operands = (inputs, cell.kernel[...], cell.recurrent_kernel[...], cell.bias[...])

    def forward(*operands: jax.Array) -> jax.Array:
        return lstm(*operands, carry, dtype)[0]

    def both(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(forward, *operands)[1](d_outputs)

    def timed(function: Callable, flop: int = 0) -> Part:
        compiled = jax.jit(lambda *operands: function(*operands)).lower(*operands).compile()
        return Part(lambda: jax.block_until_ready(compiled(*operands)), flop)

    parts = {
        "LSTM, forward": timed(forward, problem.lstm_flop),
        "LSTM, forward and backward": timed(both, 3 * problem.lstm_flop),
    }
    with mock.patch("jaxlm.model.lstm.dot_f32", outer_product):
        parts["LSTM, forward, without products"] = timed(forward)
        parts["LSTM, forward and backward, without products"] = timed(both)
    return parts


def softmax_parts(problem: Problem) -> dict[str, Part]:
    """The loss, the sampler and the update of the softmax rows."""
    width, size, dtype = problem.softmax_size, problem.vocab_size, problem.compute_dtype
    labels = jnp.asarray(problem.texts(1)[0][:, 1:].reshape(-1, 1))
    outputs = jax.random.normal(jax.random.key(1), (problem.words, width))
    table, biases = jnp.zeros((size, width)), jnp.zeros(size)
    sample = jax.jit(lambda key: log_uniform_candidate_sampler(key, labels, problem.num_sampled, True, size))
    values = sample(jax.random.key(0))
    tx = optimizer(problem.train_config, 1e-3)
    indices = jnp.concatenate([labels[:, 0], values.sampled_candidates])
    gradient = RowGradient(indices, jnp.ones((indices.size, width)))
    updated = [jnp.zeros_like(table), tx.init(table)]  # donated

    @jax.jit
    def loss_and_gradient(table, biases, outputs):
        rows = gather_rows(table, biases, labels, values.sampled_candidates)

        def loss(rows, outputs):
            return sampled_softmax_loss_of_rows(rows, labels, outputs, values, dtype=dtype).mean()

        return jax.grad(loss, argnums=(0, 1))(rows, outputs)

    @jax.jit(donate_argnums=(0, 1))
    def update(table, opt_state, gradient):
        return update_rows(tx, table, opt_state, sum_duplicates(gradient, size))

    def update_in_place() -> None:
        updated[:] = jax.block_until_ready(update(*updated, gradient))

    return {
        "loss and its gradient": Part(
            lambda: jax.block_until_ready(loss_and_gradient(table, biases, outputs)),
            dataclasses.replace(problem, loss="sampled_softmax").loss_flop,
        ),
        "sampler": Part(lambda: jax.block_until_ready(sample(jax.random.key(1)))),
        "duplicates and row updates": Part(update_in_place),
    }


def main(
    problem: ProblemOptions = Problem(),  # noqa: B008
    compute_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    repeats: int = 15,
) -> None:
    """Prints a table for each data type.

    Args:
      problem: Sizes of the step; its `compute_dtype` has no effect.
      compute_dtypes: Data types of the operands of products.
      repeats: Timed calls of each part.
    """
    parts: dict[tuple[str, str], Part] = {}
    for dtype in compute_dtypes:
        typed = dataclasses.replace(problem, compute_dtype=dtype)
        found = {"whole step": whole_step(typed)} | lstm_parts(typed) | softmax_parts(typed)
        parts |= {(dtype, name): part for name, part in found.items()}
    times = interleaved({key: part.call for key, part in parts.items()}, repeats)
    print(f"{machine()}\n{problem}")
    for dtype in compute_dtypes:
        speed = matmul_speed(dtype)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts[dtype, "whole step"].call()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(f"\n{dtype}: 2048 x 2048 products run at {speed / 1e9:.0f} GFLOP/s; a step has {faults:,} page faults")
        rows = []
        for (of_dtype, name), part in parts.items():
            if of_dtype == dtype:
                seconds, floor = times[dtype, name], part.flop / speed
                share = [f"{1e3 * floor:.3g}", f"{floor / statistics.median(seconds):.0%}"] if part.flop else ["", ""]
                rows.append([name, *milliseconds(seconds), *share])
        print_table(["part", "median ms", "min ms", "floor ms", "share of floor"], rows)


if __name__ == "__main__":
    set_equal_terms()
    tyro.cli(main)
