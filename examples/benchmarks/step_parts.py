"""Shows where the milliseconds of a training step go; `train_step.py --profile` prints it, too.

    python examples/benchmarks/step_parts.py

Each part runs by itself, on operands like those of a step, in turn with the others, in random order. They add up to
more than the step where XLA fuses across them. Page faults are those of memory that is mapped anew in each step.
"""

import resource
import statistics
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from measure import interleaved, machine, matmul_speed, milliseconds, print_table

import jaxlm
from jaxlm.candidate_sampling.samplers import log_uniform_candidate_sampler
from jaxlm.data.batches import Batch
from jaxlm.losses.sampled import gather_rows, sampled_softmax_loss_of_rows
from jaxlm.model.lstm import lstm
from jaxlm.row_updates import RowGradient, sum_duplicates, update_rows
from jaxlm.training.state import optimizer


def parts(
    model_config: jaxlm.ModelConfig, config: jaxlm.TrainConfig
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Returns a call of each part, and the FLOP of its matrix products."""
    batch, time = config.batch_size, config.sequence_length
    words, embedded_size, hidden = batch * time, model_config.embedding_size, model_config.hidden_size
    dtype, rng = config.compute_dtype, np.random.default_rng(0)
    ids = np.exp(rng.random((batch, time + 1)) * np.log(model_config.vocab_size)).astype(np.int32) - 1
    whole = [jaxlm.TrainState.create(jaxlm.LanguageModel(model_config, rngs=nnx.Rngs(0)), config)]
    cell = jaxlm.LanguageModel(jaxlm.ModelConfig(10, embedded_size, hidden), rngs=nnx.Rngs(0)).lstms[0]
    kernels = (cell.kernel[...], cell.recurrent_kernel[...], cell.bias[...])
    inputs = jnp.asarray(rng.normal(size=(time, batch, embedded_size)), jnp.float32)
    carry = (jnp.zeros((batch, hidden)), jnp.zeros((batch, hidden)))
    d_outputs = jnp.asarray(rng.normal(size=(time, batch, hidden)), jnp.float32)
    outputs, labels = d_outputs.reshape(words, hidden), jnp.asarray(ids[:, 1:].reshape(-1, 1))
    table, biases = jnp.zeros((model_config.vocab_size, hidden)), jnp.zeros(model_config.vocab_size)
    values = log_uniform_candidate_sampler(jax.random.key(0), labels, config.num_sampled, True, table.shape[0])
    tx = optimizer(config, 1e-3)
    indices = jnp.concatenate([labels[:, 0], values.sampled_candidates])
    gradient = RowGradient(indices, jnp.ones((indices.size, hidden)))
    updated = [jnp.zeros_like(table), tx.init(table)]  # donated

    @jax.jit
    def forward(*arguments):
        return lstm(inputs, *arguments, carry, dtype)[0]

    @jax.jit
    def forward_and_backward(inputs, *arguments):
        _, pullback = jax.vjp(lambda *operands: lstm(*operands, carry, dtype)[0], inputs, *arguments)
        return pullback(d_outputs)

    @jax.jit
    def loss_and_gradient(table, biases, outputs):
        rows = gather_rows(table, biases, labels, values.sampled_candidates)

        def loss(rows, outputs):
            return sampled_softmax_loss_of_rows(rows, labels, outputs, values, dtype=dtype).mean()

        return jax.grad(loss, argnums=(0, 1))(rows, outputs)

    @jax.jit(donate_argnums=(0, 1))
    def update(table, opt_state, gradient):
        return update_rows(tx, table, opt_state, sum_duplicates(gradient, table.shape[0]))

    def step() -> None:
        whole[0], loss = jaxlm.train_step(whole[0], Batch(ids[:, :-1], ids[:, 1:]), 1e-3)
        jax.block_until_ready(loss)

    def update_in_place() -> None:
        updated[:] = jax.block_until_ready(update(*updated, gradient))

    flop = 2 * words * 4 * hidden * (embedded_size + hidden)
    sampled_flop = 6 * words * hidden * config.num_sampled
    sample = jax.jit(
        lambda key: log_uniform_candidate_sampler(key, labels, config.num_sampled, True, model_config.vocab_size)
    )
    calls = {
        "whole step": step,
        "LSTM, forward": lambda: jax.block_until_ready(forward(*kernels)),
        "LSTM, forward and backward": lambda: jax.block_until_ready(forward_and_backward(inputs, *kernels)),
        "loss and its gradient": lambda: jax.block_until_ready(loss_and_gradient(table, biases, outputs)),
        "sampler": lambda: jax.block_until_ready(sample(jax.random.key(1))),
        "duplicates and row updates": update_in_place,
    }
    return calls, dict(zip(calls, (3 * flop + sampled_flop, flop, 3 * flop, sampled_flop, 0, 0), strict=True))


def main(
    vocab_size: int = 200_000,
    embedding_size: int = 256,
    hidden_size: int = 1024,
    num_sampled: int = 1000,
    batch_size: int = 32,
    sequence_length: int = 35,
    optimizer: Literal["adagrad", "adam"] = "adagrad",
    compute_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    repeats: int = 15,
) -> None:
    """Prints a table.

    Args:
      vocab_size: Number of words.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      num_sampled: Sampled classes.
      batch_size: Streams of text.
      sequence_length: Time steps.
      optimizer: Adagrad or Adam.
      compute_dtypes: Data types of the factors of products.
      repeats: Timed calls of each part.
    """
    model_config = jaxlm.ModelConfig(vocab_size, embedding_size, hidden_size)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for dtype in compute_dtypes:
        config = jaxlm.TrainConfig(
            batch_size=batch_size,
            sequence_length=sequence_length,
            num_sampled=num_sampled,
            optimizer=optimizer,
            compute_dtype=dtype,
        )
        of_dtype, flop = parts(model_config, config)
        calls |= {(dtype, name): call for name, call in of_dtype.items()}
    times = interleaved(calls, repeats)
    print(machine())
    for dtype in compute_dtypes:
        speed = matmul_speed(dtype)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        calls[dtype, "whole step"]()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(f"\n{dtype}: 2048 x 2048 products run at {speed / 1e9:.0f} GFLOP/s; a step has {faults:,} page faults")
        rows = []
        for name, operations in flop.items():
            floor = operations / speed
            share = f"{floor / statistics.median(times[dtype, name]):.0%}" if operations else ""
            rows.append([name, *milliseconds(times[dtype, name]), f"{1e3 * floor:.3g}", share])
        print_table(["part", "median ms", "min ms", "floor ms", "share of floor"], rows)


if __name__ == "__main__":
    tyro.cli(main)
