"""Kills a training process at random instants until it ends, and compares it with an undisturbed one.

    python examples/benchmarks/kills.py --kills 200

Weights, moments, LSTM state and metrics have to be the same, bit for bit, but for the times in the metrics.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx
from measure import machine, print_table

import jaxlm
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config, read_metrics

FLAGS = (
    "--embedding-size 8 --hidden-size 16 --dropout 0.1 --num-sampled 20 --batch-size 4 --sequence-length 5"
    " --steps 900 --eval-every 100 --eval-tokens 200 --save-steps 45"
).split()
TIMES = ("seconds", "words_per_second")


def start(data: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxlm", "train", str(data), "--out", str(run), *FLAGS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def result(run: Path) -> tuple[list[np.ndarray], list[dict]]:
    """Returns the arrays of the last checkpoint, and the metrics without times."""
    config, checkpoints = load_config(run), Checkpoints(run)

    def create() -> jaxlm.TrainState:
        return jaxlm.TrainState.create(jaxlm.LanguageModel(config.model, rngs=nnx.Rngs(0)), config.train)

    state = checkpoints.restore(checkpoints.latest_step(), jax.eval_shape(create))
    leaves = [jax.random.key_data(leaf) if leaf.dtype == state.key.dtype else leaf for leaf in jax.tree.leaves(state)]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(run)]
    return [np.asarray(leaf) for leaf in leaves], rows


def make_data(directory: Path) -> Path:
    ids = np.exp(np.random.default_rng(0).random(30_000) * np.log(500)).astype(int)
    (directory / "text.txt").write_text("\n".join(" ".join(f"w{i}" for i in line) for line in ids.reshape(-1, 10)))
    jaxlm.prepare(directory / "text.txt", directory / "data", progress=False)
    return directory / "data"


def main(kills: int = 200, seed: int = 0) -> None:
    """Prints a table.

    Args:
      kills: Number of times that a process is killed.
      seed: Random seed of the instants.
    """
    rng, outcomes, killed = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name))
        begin = time.perf_counter()
        assert start(data, Path(name) / "whole").wait() == 0
        length = time.perf_counter() - begin
        expected_arrays, expected_rows = result(Path(name) / "whole")
        while killed < kills:
            run = Path(name) / f"run{sum(outcomes.values())}"
            process = start(data, run)
            while process.poll() is None and killed < kills:
                try:
                    process.wait(rng.uniform(0.0, length))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed += 1
                    process = start(data, run)
            code = process.wait()
            arrays, rows = result(run)
            same = code == 0 and all(map(np.array_equal, arrays, expected_arrays)) and rows == expected_rows
            outcomes["same bits" if same else "OTHER BITS"] += 1
    print(machine())
    print_table(["kills", "runs", "outcome"], [[killed, count, outcome] for outcome, count in outcomes.items()])


if __name__ == "__main__":
    tyro.cli(main)
