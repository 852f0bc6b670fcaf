"""A run that is killed at random instants ends with the same bits as an uninterrupted one."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import final_arrays

from jaxlm.runs.metrics import read_metrics

FLAGS = (
    "--embedding-size 8 --hidden-size 16 --dropout 0.1 --num-sampled 20 --batch-size 4 --sequence-length 5"
    " --steps 900 --eval-every 100 --eval-tokens 200 --save-steps 45"
).split()
TIMES = ("seconds", "words_per_second")
KILLS = 30


def start(data: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxlm", "train", str(data), "--out", str(run), *FLAGS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def metrics(run: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without times."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(run)]


@pytest.mark.exhaustive
def test_thirty_kills_at_random_instants(corpus_dir, tmp_path):
    rng, killed, number = random.Random(0), 0, 0
    begin = time.perf_counter()
    assert start(corpus_dir, tmp_path / "whole").wait() == 0
    length = time.perf_counter() - begin
    while killed < KILLS:
        number += 1
        run = tmp_path / f"run{number}"
        process = start(corpus_dir, run)
        while process.poll() is None and killed < KILLS:
            try:
                process.wait(rng.uniform(0.0, length))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                process = start(corpus_dir, run)
        assert process.wait() == 0
        assert all(map(np.array_equal, final_arrays(run), final_arrays(tmp_path / "whole")))
        assert metrics(run) == metrics(tmp_path / "whole")
