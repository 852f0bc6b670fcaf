"""Times jaxlm's training step beside what a user would choose instead.

    python examples/benchmarks/train_step.py --peers keras-sampled tf-sparse torch-sparse

Each peer runs in a process of its own. They take turns in random order, one step at a time (`--steps` for more), so
that noise affects all of them alike. The floor is that of the matrix products with sampled classes, at the speed of a
2048 x 2048 product (on a GPU 8192 x 8192) in the same run, in float32 and in bfloat16. The torch peers need the extra
`bench`.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

Peer = Literal[
    "jaxlm-adam",
    "jaxlm-float32",
    "jaxlm-bfloat16",
    "jax-dense",
    "keras-full",
    "keras-full-adam",
    "keras-sampled",
    "keras-sampled-adam",
    "tf-sparse",
    "torch-sparse",
    "torch-sparse-bfloat16",
    "torch-adaptive",
]


def serve(name: str, sizes: list) -> None:
    """Runs as many steps as each line on standard input says; answers with seconds a step, loss and peak memory."""
    from peers import PEERS, Problem

    problem = Problem(*sizes)
    if name.endswith("-adam"):
        name, problem = name.removesuffix("-adam"), problem._replace(optimizer="adam")
    if name.endswith(("-float32", "-bfloat16")):
        name, dtype = name.rsplit("-", 1)
        problem = problem._replace(compute_dtype=dtype)
    rng = np.random.default_rng(0)
    step = PEERS[name](problem)
    shape = (problem.batch_size, problem.sequence_length + 1)
    for line in sys.stdin:
        # log-uniform words, as in Zipf's law
        texts = [np.exp(rng.random(shape) * np.log(problem.vocab_size)).astype(np.int32) - 1 for _ in range(int(line))]
        start = time.perf_counter()
        for words in texts:
            loss = step(np.ascontiguousarray(words[:, :-1]), np.ascontiguousarray(words[:, 1:]))
        loss = float(loss)  # waits for all of them
        seconds = (time.perf_counter() - start) / len(texts)
        print("ANSWER", json.dumps([seconds, loss, peak_memory(name)]), flush=True)


def peak_memory(name: str) -> int:
    """Returns the most bytes that a peer ever held: of a GPU's memory if it runs on one, else of the process."""
    if name.startswith("jax"):
        import jax

        if jax.default_backend() == "gpu":
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    elif name.startswith("torch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Process:
    """A peer in a process of its own."""

    def __init__(self, name: str, sizes: list):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", name, json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ
            | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def steps(self, number: int) -> list[float]:
        """Runs steps and returns seconds a step, the last loss and peak bytes."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError(f"the process ended with code {self.process.wait()}; run it by hand: {self.process.args}")


def main(
    peers: tuple[Peer, ...] = ("keras-sampled", "tf-sparse", "torch-sparse"),
    vocab_size: int = 200_000,
    embedding_size: int = 256,
    hidden_size: int = 1024,
    num_sampled: int = 1000,
    batch_size: int = 32,
    sequence_length: int = 35,
    optimizer: Literal["adagrad", "adam"] = "adagrad",
    projection_size: int = 0,
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    steps: int = 1,
    repeats: int = 15,
    profile: bool = False,
) -> None:
    """Prints a table.

    Args:
      peers: What to compare with; all of them together take about 12 GB of memory.
      vocab_size: Number of words.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      num_sampled: Sampled classes.
      batch_size: Streams of text.
      sequence_length: Time steps.
      optimizer: For all but tf-sparse and the torch peers, which use Adagrad, and those that name theirs.
      projection_size: Width of a bottleneck between LSTM and softmax, of jaxlm and the torch peers; 0 for none.
      compute_dtype: Of jaxlm's products; of others' where their name says so.
      steps: Steps before a peer waits for its device; some more fit a GPU.
      repeats: Timed turns of each.
      profile: Whether to show where the time of jaxlm's step goes, too, in both data types.
    """
    sizes: list = [vocab_size, embedding_size, hidden_size, num_sampled, batch_size, sequence_length, optimizer]
    names = ["jaxlm", *peers]
    processes = {}
    for name in names:  # one after the other, since setting up takes memory and both cores
        processes[name] = Process(
            name, [*sizes, projection_size, *([compute_dtype] if name.startswith("jaxlm") else [])]
        )
        for _ in range(3):
            processes[name].steps(steps)
    answers: dict[str, list[list[float]]] = {name: [] for name in names}
    order = names * repeats
    for name in random.Random(0).sample(order, len(order)):
        answers[name].append(processes[name].steps(steps))
    for process in processes.values():
        process.process.kill()
    from measure import machine, matmul_speed, milliseconds, print_table

    words = batch_size * sequence_length
    flop = 6 * words * hidden_size * (4 * (embedding_size + hidden_size) + projection_size)
    flop += 6 * words * (projection_size or hidden_size) * num_sampled
    speeds = {dtype: matmul_speed(dtype) for dtype in ("float32", "bfloat16")}
    ours = statistics.median(seconds for seconds, _, _ in answers["jaxlm"])
    rows = []
    for name in names:
        times = [seconds for seconds, _, _ in answers[name]]
        median = statistics.median(times)
        shares = [f"{flop / speed / median:.0%}" for speed in speeds.values()]
        memory = f"{answers[name][-1][2] / 1e6:,.0f}"
        rows.append([name, *milliseconds(times), f"{words / median:,.0f}", f"{median / ours:.2f}", *shares, memory])
    prefixes = {"tensorflow": ("tf-", "keras-"), "torch": ("torch-",)}
    print(machine(*(package for package, starts in prefixes.items() if any(n.startswith(starts) for n in names))))
    print(
        f"V {vocab_size:,}, E {embedding_size}, H {hidden_size}, S {num_sampled:,}, B {batch_size},"
        f" T {sequence_length}, {optimizer}, compute_dtype {compute_dtype}"
    )
    for dtype, each in speeds.items():
        print(f"floor in {dtype}: {flop / 1e9:.1f} GFLOP at {each / 1e9:.0f} GFLOP/s = {1e3 * flop / each:.3g} ms")
    header = ["method", "median ms", "min ms", "words/s", "time over jaxlm's"]
    print_table([*header, *(f"share of {dtype} floor" for dtype in speeds), "peak memory MB"], rows)
    if profile:
        import step_parts

        step_parts.main(*sizes, repeats=repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
    else:
        tyro.cli(main)
