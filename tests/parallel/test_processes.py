"""Several real processes train one model; when one dies the others leave, and the run ends with the same bits."""

import itertools
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import final_arrays

from jaxlm import cli
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import Corpus
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.processes import is_peer_death
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config
from jaxlm.runs.loop import train
from jaxlm.runs.metrics import read_metrics

OPTIONS = (
    "--embedding-size=7 --hidden-size=11 --dropout=0.2 --batch-size=6 --sequence-length=5 --num-sampled=21"
    " --learning-rate=0.03 --eval-tokens=100 --eval-every=100 --save-steps=20 --compute-dtype=float32"
    " --optimizer=sgd --decay-fraction=0"
)


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:3121", True),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", True),
        ("NCCL operation ncclAllReduce() failed: remote process exited or there was a network error", True),
        ("NCCL operation ncclCommInitRank() failed: unhandled cuda error. Last NCCL error: out of memory", False),
        ("NCCL operation ncclGroupEnd() failed: Failed to CUDA malloc 2147483648 bytes: 'out of memory'", False),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4096 bytes for NCCL", False),
        ("INVALID_ARGUMENT: shapes do not match", False),
    ],
)
def test_running_out_of_memory_is_no_death_of_a_peer(monkeypatch, message, expected):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert is_peer_death(RuntimeError(message)) == expected
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert not is_peer_death(RuntimeError(message))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(data: Path, run: Path, count: int, *options: str) -> list[subprocess.Popen]:
    address = f"--coordinator-address=localhost:{free_port()}"
    command = [sys.executable, "-m", "jaxlm", "train", str(data), f"--out={run}", *OPTIONS.split(), *options]
    command += ["--distributed", address, f"--num-processes={count}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, f"--process-id={n}"], **pipes) for n in range(count)]


def finish(processes: list[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Returns the exit code, the output and the errors of each process."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def child_of(parent: int) -> int:
    """Returns the id of a process' child."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(") ")[-1].split()[1]) == parent:
                return int(stat.parent.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"{parent} has no child")


def kill_one(processes: list[subprocess.Popen], run: Path, rng: random.Random) -> int:
    """Kills a process that trains, or one that watches over it, after the first checkpoint; returns its number."""
    before = len(read_metrics(run))
    wait_until(lambda: len(read_metrics(run)) > before and bool(Checkpoints(run).steps()))
    time.sleep(rng.random())
    number = rng.randrange(len(processes))
    victim = rng.choice([processes[number].pid, child_of(processes[number].pid)])
    os.kill(victim, signal.SIGKILL)
    return number


def train_in_one_process(corpus: Corpus, run: Path, num_steps: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Returns the arrays of the same run, not interrupted, on as many devices of this process."""
    model = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11, dropout=0.2)
    config = TrainConfig(batch_size=6, sequence_length=5, num_sampled=21, optimizer="sgd", compute_dtype="float32")
    schedule = ScheduleConfig(0.03, decay_fraction=0.0, steps=num_steps, eval_every=num_steps, eval_tokens=100)
    train(corpus, run, model, config, schedule, progress=False, mesh=make_mesh(*shape))
    return final_arrays(run)


def stop_one(processes: list[subprocess.Popen], run: Path) -> None:
    """Asks the last process, which is not the one that decides, to stop."""
    before = len(read_metrics(run))
    wait_until(lambda: len(read_metrics(run)) > before)
    processes[-1].terminate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kills"),
    [
        ((1, 2), 1),
        pytest.param((1, 2), 10, marks=pytest.mark.exhaustive),
        pytest.param((2, 2), 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_whose_processes_are_killed_and_stopped_has_the_bits_of_one_that_was_not(
    corpus, corpus_dir, tmp_path, shape, kills
):
    num_steps, rng, run, count = 160 * kills, random.Random(kills), tmp_path / "run", math.prod(shape)
    options = [f"--data-shards={shape[0]}", f"--steps={num_steps}"]
    expected_arrays = train_in_one_process(corpus, tmp_path / "one", num_steps, shape)
    if count > 2:  # several processes add more than two numbers in another order
        finish(start(corpus_dir, tmp_path / "whole", count, *options), 120)
        whole = final_arrays(tmp_path / "whole")
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), whole, expected_arrays)
        expected_arrays = whole
    for _ in range(kills):
        processes = start(corpus_dir, run, count, *options)
        killed = kill_one(processes, run, rng)
        begin = time.monotonic()
        ends = finish(processes, 60)
        assert time.monotonic() - begin < 30
        for number, (code, _, errors) in enumerate(ends):
            if number != killed:
                last = (errors.splitlines() or [""])[-1]
                assert code == 3 and last.startswith("error: a process of this run has died"), (killed, ends)
                assert "Traceback" not in errors
    if kills > 1:
        processes = start(corpus_dir, run, count, *options)
        stop_one(processes, run)
        ends = finish(processes)
        assert [code for code, *_ in ends] == [130] * count, ends
        assert "resuming from step" in ends[0][1] and "stopped at step" in ends[0][1] and "step" not in ends[1][1]
    ends = finish(start(corpus_dir, run, count, *options), 120 * kills)
    assert [code for code, *_ in ends] == [0] * count and "resuming from step" in ends[0][1], ends
    jax.tree.map(np.testing.assert_array_equal, final_arrays(run), expected_arrays)
    steps = [row["step"] for row in read_metrics(run) if "train_loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == num_steps
    progress = Checkpoints(run).progress(num_steps)
    assert progress.num_processes == count and np.prod(progress.mesh) == count


@pytest.mark.exhaustive
def test_the_clock_of_one_process_ends_the_run_of_all(corpus_dir, tmp_path):
    run = tmp_path / "run"
    options = ["--minutes=0.2", "--decay-fraction=0.5", "--save-minutes=0.02", "--save-steps=0", "--eval-every=9999999"]
    ends = finish(start(corpus_dir, run, 2, *options))
    assert [code for code, *_ in ends] == [0, 0] and "stopped" not in ends[0][1], ends
    rows = [row for row in read_metrics(run) if "learning_rate" in row]
    steps = load_config(run).total_steps
    assert rows[-1]["learning_rate"] < 0.003 < rows[0]["learning_rate"] and 0 <= steps - rows[-1]["step"] < 20
    assert [row["step"] for row in read_metrics(run) if "valid_loss" in row] == [steps]
    saved = Checkpoints(run).steps()
    assert saved[0] == steps and all(later - earlier > 1 for later, earlier in itertools.pairwise(saved))


def test_options_without_distributed_are_refused(corpus_dir, tmp_path, capsys):
    assert cli.run(["train", str(corpus_dir), f"--out={tmp_path / 'run'}", "--num-processes=2"]) == 2
    assert "--num-processes: expected no value without --distributed" in capsys.readouterr().err


def test_processes_that_cannot_find_each_other_say_so(corpus_dir, tmp_path):
    command = [sys.executable, "-m", "jaxlm", "train", str(corpus_dir), f"--out={tmp_path / 'run'}", "--distributed"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "The processes of this run cannot find each other" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()
