"""Times jaxlm's training step beside its alternatives.

    python examples/benchmarks/train_step.py --peers torch-sampled tf-sparse

Each peer runs in a process of its own, with the same memory settings and threads. They take turns in random order, one
step at a time (`--steps` for more), so that noise affects all of them alike. The floor is that of the matrix products
of jaxlm's loss (`--loss full` beside torch-full), at the speed of a 2048 x 2048 product (on a GPU 8192 x 8192) in the
same run. The torch peers need the extra `torch`. Peers take turns with Adagrad; "-adam" after a name gives Adam,
"-float32" and "-bfloat16" another data type of products, and "torch-sampled-compiled" has its loss compiled by
`torch.compile`.
"""

import dataclasses
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro
from measure import EQUAL_TERMS, machine, matmul_speed, milliseconds, packages_of, print_table, set_equal_terms
from peers import make_peer, random_start
from problem import Problem, ProblemOptions

LEARNING_RATE = 1e-3
CHILD = EQUAL_TERMS | {"KERAS_BACKEND": "tensorflow", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def serve(name: str, problem: Problem) -> None:
    """Runs as many steps as each line on standard input says; answers with seconds per step, loss and peak memory."""
    peer = make_peer(name, problem, random_start(problem))
    for turn, line in enumerate(sys.stdin):
        texts = problem.texts(int(line), seed=turn)
        start = time.perf_counter()
        for words in texts:
            loss = peer.step(words[:, :-1].copy(), words[:, 1:].copy(), LEARNING_RATE)
        loss = float(loss)  # waits for all of them
        seconds = (time.perf_counter() - start) / len(texts)
        print("ANSWER", json.dumps([seconds, loss, peak_memory(name)]), flush=True)


def peak_memory(name: str) -> int:
    """Returns the most bytes that a peer ever held: of a GPU's memory if it runs on one, else of the process."""
    if name.startswith("jax"):
        import jax

        if jax.default_backend() != "cpu":
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    elif name.startswith("torch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Process:
    """A peer in a process of its own."""

    def __init__(self, name: str, problem: Problem):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", name, json.dumps(dataclasses.asdict(problem))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ | CHILD,
        )

    def steps(self, number: int) -> list[float]:
        """Runs steps and returns seconds per step, the last loss and peak bytes."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError(f"the process ended with code {self.process.wait()}; run it by hand: {self.process.args}")


def take_turns(names: list[str], problem: Problem, steps: int, repeats: int) -> dict[str, list[list[float]]]:
    """Returns the answers of each peer that runs; jaxlm has to."""
    processes = {}
    for name in names:  # one after the other, since setting up takes memory and all cores
        process = Process(name, problem)
        try:
            for _ in range(3):
                process.steps(steps)
        except RuntimeError as error:
            if name == "jaxlm":
                raise
            print(f"{name}: {error}", file=sys.stderr)
        else:
            processes[name] = process
    answers: dict[str, list[list[float]]] = {name: [] for name in processes}
    order = list(processes) * repeats
    for name in random.Random(0).sample(order, len(order)):
        answers[name].append(processes[name].steps(steps))
    for process in processes.values():
        process.process.kill()
        process.process.wait()  # until the memory of its device is free
    return answers


def main(
    peers: tuple[str, ...] = ("torch-sampled", "keras-sampled", "tf-sparse"),
    problem: ProblemOptions = Problem(),  # noqa: B008
    steps: int = 1,
    repeats: int = 15,
) -> None:
    """Prints a table; exits with 1 if a peer failed.

    Args:
      peers: Of jaxlm, jax-dense, keras-full, keras-sampled, tf-sparse, torch-sampled, torch-adaptive and torch-full,
        with the endings above; tf-sparse has Adagrad alone. The default ones together take about 12 GB of memory.
      problem: Sizes of the step.
      steps: Steps before a peer waits for its device; some more fit a GPU.
      repeats: Timed turns of each.
    """
    names = ["jaxlm", *peers]
    answers = take_turns(names, problem, steps, repeats)
    speeds = {dtype: matmul_speed(dtype) for dtype in ("float32", "bfloat16")}
    ours = statistics.median(seconds for seconds, _, _ in answers["jaxlm"])
    rows = []
    for name in names:
        if name not in answers:
            rows.append([name, "failed", *[""] * 6])
            continue
        times = [seconds for seconds, _, _ in answers[name]]
        median = statistics.median(times)
        shares = [f"{problem.flop / speed / median:.0%}" for speed in speeds.values()]
        memory = f"{answers[name][-1][2] / 1e6:,.0f}"
        speed = f"{problem.words / median:,.0f}"
        rows.append([name, *milliseconds(times), speed, f"{median / ours:.2f}", *shares, memory])
    print(machine(*packages_of(answers)))
    print(problem)
    for dtype, each in speeds.items():
        floor = 1e3 * problem.flop / each
        print(f"floor in {dtype}: {problem.flop / 1e9:.1f} GFLOP at {each / 1e9:.0f} GFLOP/s = {floor:.3g} ms")
    header = ["method", "median ms", "min ms", "words/s", "time over jaxlm's"]
    print_table([*header, *(f"share of {dtype} floor" for dtype in speeds), "peak memory MB"], rows)
    if set(names) - set(answers):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], Problem(**json.loads(sys.argv[3])))
    else:
        set_equal_terms()
        tyro.cli(main)
