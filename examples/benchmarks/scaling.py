"""What the devices of a mesh send each other in a step and what each holds; and what that gives on H100s.

    python examples/benchmarks/scaling.py
    python examples/benchmarks/scaling.py --estimate

The first command compiles steps for forced devices of this machine and reads their HLO: it runs nothing, so it needs
no more than a processor. Bytes are those that a device sends in a ring. "predicted" is the sum of the terms below.

The second command computes times from these terms. Its assumptions are its options; the speed of one device is one of
them, and was not measured. Nothing is assumed to overlap.
"""

import math
import os
from typing import NamedTuple

import tyro
from collectives import collectives
from measure import print_table

FLOAT = 4  # bytes


class Problem(NamedTuple):
    """A mesh, a model and a batch."""

    data: int
    vocab: int
    vocab_size: int
    words: int  # in the batch of all devices
    num_sampled: int
    embedding_size: int = 256
    hidden_size: int = 1024
    projection_size: int = 0

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.projection_size or self.hidden_size

    @property
    def lstm_size(self) -> int:
        """Number of dense parameters."""
        gates = 4 * self.hidden_size * (self.embedding_size + self.hidden_size + 1)
        return gates + self.hidden_size * self.projection_size


class Traffic(NamedTuple):
    """Bytes that a device sends in a step, by the axes along which it sends them."""

    vocab: float
    data: float
    both: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self)


def traffic(problem: Problem) -> Traffic:
    """Returns what a step sends: rows and outputs along `vocab`, gradients of rows along `data`, others along both."""
    data, vocab, devices = problem.data, problem.vocab, problem.data * problem.vocab
    along_vocab, along_data, along_both = ((size - 1) / size for size in (vocab, data, devices))
    group = problem.words / data  # words of the devices along `vocab`
    width, embedding = problem.softmax_size, problem.embedding_size
    rows = group * embedding + 2 * group * width + 2 * problem.num_sampled * width
    labels = problem.words * width + 2 * problem.num_sampled / vocab * width
    return Traffic(
        FLOAT * rows * along_vocab,
        FLOAT * labels * along_data,
        FLOAT * (problem.words * embedding + 2 * problem.lstm_size) * along_both,
    )


def device_bytes(problem: Problem) -> float:
    """Returns the size of a device's part of the parameters and Adam's moments."""
    rows = -(-problem.vocab_size // problem.vocab)
    return 3 * FLOAT * (rows * (problem.embedding_size + problem.softmax_size + 1) + problem.lstm_size)


def describe(problem: Problem) -> list[str]:
    """Returns the first columns of a row."""
    widths = f"{problem.embedding_size}, {problem.softmax_size}"
    mesh = f"{problem.data} x {problem.vocab}"
    return [mesh, f"{problem.vocab_size:,}", widths, f"{problem.words:,}", f"{problem.num_sampled:,}"]


def compiled_step(problem: Problem):  # noqa: ANN201
    """Compiles a step, without its arrays."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax.sharding import NamedSharding

    import jaxlm
    from jaxlm.data.batches import Batch
    from jaxlm.parallel.mesh import stream_spec
    from jaxlm.training.state import state_specs
    from jaxlm.training.step import jit_train_step

    mesh = jaxlm.make_mesh(problem.data, problem.vocab)
    length = 20 if problem.projection_size else 35
    sizes = problem.embedding_size, problem.hidden_size
    model = jaxlm.ModelConfig(problem.vocab_size, *sizes, projection_size=problem.projection_size)
    config = jaxlm.TrainConfig(
        batch_size=problem.words // length,
        sequence_length=length,
        num_sampled=problem.num_sampled,
        compute_dtype="float32",
    )
    state = jax.eval_shape(
        lambda: jaxlm.TrainState.create(jaxlm.LanguageModel(model, rngs=nnx.Rngs(0), mesh=mesh), config)
    )
    state = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        state,
        state_specs(state),
    )
    sharding = NamedSharding(mesh, stream_spec(mesh))
    ids = jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32, sharding=sharding)
    return jit_train_step.lower(state, Batch(ids, ids, False), np.float32(0.1)).compile()


def problems(devices: int, divisor: int) -> list[Problem]:
    """Returns the rows of the table."""
    words, sampled, vocab_size = 1120, 8192 // divisor, 200_000 // divisor
    large = 793_471 // divisor
    return [
        Problem(1, devices, vocab_size, words, 1000 // divisor),
        Problem(2, devices // 2, vocab_size, words, 1000 // divisor),
        Problem(devices, 1, vocab_size, words, 1000 // divisor),
        Problem(1, devices, 5 * vocab_size, words, 1000 // divisor),
        Problem(1, devices, large, words, sampled),
        Problem(1, devices, large, devices * words, sampled),
        Problem(2, devices // 2, large, devices * words, sampled),
        Problem(1, devices, large, devices * 2560, sampled, 512, 2048, 512),
    ]


def print_bytes(devices: int, divisor: int) -> None:
    """Compiles steps, and prints what they send."""
    rows = []
    for problem in problems(devices, divisor):
        program = compiled_step(problem)
        found, predicted = collectives(program.as_text()), traffic(problem)
        sent, memory = sum(collective.wire for collective in found), program.memory_analysis()
        lstm = 2 * FLOAT * problem.lstm_size * (devices - 1) / devices
        tables = FLOAT * problem.vocab_size * (problem.embedding_size + problem.softmax_size)
        megabytes = [sent, predicted.total, lstm, tables, memory.argument_size_in_bytes, memory.temp_size_in_bytes]
        rows.append([*describe(problem), str(len(found)), *(f"{number / 1e6:,.1f}" for number in megabytes)])
    sizes = ["MB sent", "predicted", "LSTM's share", "both tables", "state MB a device", "temporary MB"]
    print_table(["data x vocab", "V", "E, D", "words", "S", "collectives", *sizes], rows)


class Machine(NamedTuple):
    """What is assumed of H100s; none of it was measured.

    Args:
      words_per_second: Speed of one device alone, at 128 streams.
      words_per_device: Words of a step a device.
      num_sampled: Classes sampled per step.
      nvlink: Bytes/s of a device in one direction; 900 GB/s in both are published for the H100 SXM.
      network: Bytes/s of a device between machines; 400 Gbit/s InfiniBand.
      used: Part of the link speeds that is reached.
      devices_per_machine: Devices that share NVLink.
      memory: Bytes of a device.
    """

    words_per_second: float = 500_000
    words_per_device: int = 4480
    num_sampled: int = 8192
    nvlink: float = 450e9
    network: float = 50e9
    used: float = 0.7
    devices_per_machine: int = 8
    memory: float = 80e9


def print_estimate(machine: Machine) -> None:
    """Prints times and speeds on H100s."""
    print(f"assumed, not measured: {machine}; nothing overlaps")
    rows = []
    for vocab_size, projection in ((1_000_000, 0), (60_000_000, 0), (60_000_000, 512)):
        for data, vocab in ((1, 1), (1, 8), (8, 8), (1, 64)):
            words = data * vocab * machine.words_per_device
            problem = Problem(data, vocab, vocab_size, words, machine.num_sampled, projection_size=projection)
            sent = traffic(problem)
            within = machine.nvlink if vocab <= machine.devices_per_machine else machine.network
            across = machine.nvlink if data * vocab <= machine.devices_per_machine else machine.network
            exchange = (sent.vocab / within + (sent.data + sent.both) / across) / machine.used
            compute = machine.words_per_device / machine.words_per_second
            speed, size = words / (compute + exchange), device_bytes(problem)
            result = [f"{speed / 1e6:.1f}", f"{speed / machine.words_per_second / data / vocab:.0%}"]
            fits = size + 2e9 < machine.memory
            times = [f"{1e3 * compute:.1f}", f"{1e3 * exchange:.1f}"]
            rows.append([*describe(problem)[:3], f"{size / 1e9:.1f}", *times, *(result if fits else ["", ""])])
    print_table(
        ["data x vocab", "V", "E, D", "GB a device", "ms compute", "ms exchange", "million words/s", "of linear"], rows
    )


def main(
    devices: int = 8,
    divisor: int = 1,
    estimate: bool = False,
    assumed: tyro.conf.OmitArgPrefixes[Machine] = Machine(),  # noqa: B008
) -> None:
    """Prints a table.

    Args:
      devices: Forced devices of this machine for which steps are compiled.
      divisor: Of the vocabulary and the samples, to try it.
      estimate: Compute times on H100s instead.
      assumed: Of H100s.
    """
    assert math.log2(devices).is_integer() and devices > 1, "a power of 2"
    if estimate:
        print_estimate(assumed)
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    print_bytes(devices, divisor)


if __name__ == "__main__":
    tyro.cli(main)
