"""A full disk: one clear line, and nothing half written; training goes on with the checkpoints there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.loop import resume, train
from jaxlm.runs.metrics import read_metrics

LARGE = 10**9
TRAIN = (
    "--hidden-size 64 --embedding-size 8 --batch-size 4 --sequence-length 5 --num-sampled 20 --eval-tokens 100".split()
)


def run(limit: int, module: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a command that may not write files of more than so many bytes."""
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)"
    command = [
        sys.executable,
        "-c",
        f"{code}; runpy.run_module('{module}', run_name='__main__')",
        str(limit),
        *map(str, arguments),
    ]
    # a program that is compiled now might be cut off in the cache
    environment = os.environ | ({} if limit == LARGE else {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def errors(result: subprocess.CompletedProcess) -> list[str]:
    assert "Traceback" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_preparing_leaves_nothing(text_file, tmp_path):
    result = run(20_000, "jaxlm", "prepare", text_file, "--out", tmp_path / "data")
    assert result.returncode == 2 and len(errors(result)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_continues_with_the_checkpoints_there_are(corpus, corpus_dir, tmp_path):
    arguments = ["train", corpus_dir, "--out", tmp_path / "run", *TRAIN, "--eval-every", 20]
    model = ModelConfig(len(corpus.vocabulary), embedding_size=8, hidden_size=64)
    config = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20)
    schedule = ScheduleConfig(steps=20, eval_every=20, eval_tokens=100)
    train(corpus, tmp_path / "run", model, config, schedule, progress=False)
    result = run(50_000, "jaxlm", *arguments, "--steps", 60)  # too little for the LSTM's kernel
    assert result.returncode == 2 and "training continues, and tries again" in result.stderr
    (error,) = errors(result)
    assert "at step 60, could not be written. Make room on the disk, and resume with: jaxlm resume" in error
    assert Checkpoints(tmp_path / "run").steps() == [20] and Checkpoints(tmp_path / "run").is_intact(20)
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert resume(tmp_path / "run", progress=False) is not None
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "train_loss" in row] == [20, 40, 60]


@pytest.mark.slow
def test_a_run_that_cannot_log_trains_all_the_same(corpus_dir, tmp_path):
    arguments = ["train", corpus_dir, "--out", tmp_path / "run", *TRAIN, "--eval-every", 20]
    result = run(900, "jaxlm", *arguments, "--steps", 40)
    assert result.returncode == 2 and len(errors(result)) == 1


@pytest.mark.exhaustive
@pytest.mark.slow
def test_on_a_small_file_system(text_file, tmp_path):
    """The same on a real file system, if this process may mount one."""
    mounted = Path(tmp_path / "small")
    mounted.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mounted], capture_output=True)
    if mount.returncode:
        return  # the limits above have tested the same
    try:
        prepared = run(LARGE, "jaxlm", "prepare", text_file, "--out", mounted / "data", "--vocab-size", 120)
        assert prepared.returncode == 0, prepared.stderr
        arguments = ["train", mounted / "data", "--out", mounted / "run", *TRAIN, "--steps", 40, "--eval-every", 20]
        result = run(LARGE, "jaxlm", *arguments)
        assert result.returncode == 2 and len(errors(result)) == 1
        again = run(LARGE, "jaxlm", "prepare", text_file, text_file, "--out", mounted / "more")
        assert again.returncode == 2 and len(errors(again)) == 1
        assert not (mounted / "more").exists() and not (mounted / "more.partial").exists()
    finally:
        subprocess.run(["umount", mounted], check=True)
