"""Shows what the devices of a mesh send each other in a step, and what each of them holds.

    python examples/benchmarks/scaling.py

Compiles steps for forced devices of this machine and reads their HLO. It runs nothing, so it needs no more than a
processor. Bytes are those that a device sends in a ring. "predicted" is the sum of the terms of `traffic`.
"""

import os
from dataclasses import replace
from typing import Any, NamedTuple

import tyro
from collectives import collectives
from measure import print_table
from problem import Problem

FLOAT = 4  # bytes
README = Problem(optimizer="adam", compute_dtype="float32")
LARGE = replace(README, vocab_size=793_471, num_sampled=8192)  # One Billion Word
LARGE_LSTM = replace(LARGE, embedding_size=512, hidden_size=2048, projection_size=512, sequence_length=20)


class Case(NamedTuple):
    """A row of the table: a mesh, and a step of all its devices."""

    data: int
    vocab: int
    problem: Problem


def lstm_size(problem: Problem) -> int:
    """Returns the number of dense parameters."""
    gates = 4 * problem.hidden_size * (problem.embedding_size + problem.hidden_size + 1)
    return gates + problem.hidden_size * problem.projection_size


def traffic(case: Case) -> float:
    """Returns the bytes that a device sends in a step.

    Rows and outputs go along `vocab`, gradients of rows along `data`, and the embedded words and the LSTM along both.
    """
    data, vocab, problem = case
    along_vocab, along_data, along_both = ((size - 1) / size for size in (vocab, data, data * vocab))
    width, embedding, sampled = problem.softmax_size, problem.embedding_size, problem.num_sampled
    words = problem.words / data  # of the devices along `vocab`
    rows = words * embedding + 2 * words * width + 2 * sampled * width
    gradients = problem.words * width + 2 * sampled / vocab * width
    dense = problem.words * embedding + 2 * lstm_size(problem)
    return FLOAT * (rows * along_vocab + gradients * along_data + dense * along_both)


def compiled_step(case: Case) -> Any:
    """Compiles a step, without its arrays."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding

    import jaxlm
    from jaxlm.parallel.mesh import stream_spec
    from jaxlm.training.state_sharding import sharded_shapes
    from jaxlm.training.step import jit_train_step

    problem, mesh = case.problem, jaxlm.make_mesh(case.data, case.vocab)
    state = sharded_shapes(jax.eval_shape(lambda: problem.state(mesh)))
    sharding = NamedSharding(mesh, stream_spec(mesh))
    ids = jax.ShapeDtypeStruct((problem.batch_size, problem.sequence_length), jnp.int32, sharding=sharding)
    return jit_train_step.lower(state, jaxlm.Batch(ids, ids, False), np.float32(0.1)).compile()


def cases(devices: int, divisor: int) -> list[Case]:
    """Returns the rows of the table."""

    def case(data: int, problem: Problem, batch_size: int = 32) -> Case:
        sizes = {name: getattr(problem, name) // divisor for name in ("vocab_size", "num_sampled")}
        return Case(data, devices // data, replace(problem, batch_size=batch_size, **sizes))

    return [
        case(1, README),
        case(2, README),
        case(devices, README),
        case(1, replace(README, vocab_size=1_000_000)),
        case(1, LARGE),
        case(1, LARGE, 32 * devices),
        case(2, LARGE, 32 * devices),
        case(1, LARGE_LSTM, 128 * devices),
    ]


def main(devices: int = 8, divisor: int = 1) -> None:
    """Prints a table.

    Args:
      devices: Forced devices of this machine for which steps are compiled; a power of 2.
      divisor: Of the vocabulary and the samples, to try it.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    rows = []
    for case in cases(devices, divisor):
        problem, program = case.problem, compiled_step(case)
        found, memory = collectives(program.as_text()), program.memory_analysis()
        sent = sum(collective.wire for collective in found)
        lstm = 2 * FLOAT * lstm_size(problem) * (devices - 1) / devices
        tables = FLOAT * problem.vocab_size * (problem.embedding_size + problem.softmax_size)
        sizes = [sent, traffic(case), lstm, tables, memory.argument_size_in_bytes, memory.temp_size_in_bytes]
        widths = f"{problem.embedding_size}, {problem.softmax_size}"
        counts = [f"{problem.vocab_size:,}", widths, f"{problem.words:,}", f"{problem.num_sampled:,}", len(found)]
        rows.append([f"{case.data} x {case.vocab}", *counts, *(f"{size / 1e6:,.1f}" for size in sizes)])
    sizes = ["MB sent", "predicted", "LSTM's share", "both tables", "state MB per device", "temporary MB"]
    print_table(["data x vocab", "V", "E, D", "words", "S", "collectives", *sizes], rows)


if __name__ == "__main__":
    tyro.cli(main)
