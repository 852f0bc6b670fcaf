"""The examples and the benchmarks run as written, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import quick_if

EXAMPLES = Path(__file__).parent.parent / "examples"
XLA_FLAGS = {"train_lm.py": ""}  # with enough steps to repay optimization


def run(script: str, *arguments: object, timeout: int = 300) -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": XLA_FLAGS.get(script, os.environ["XLA_FLAGS"]),
    }
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.exhaustive
def test_the_embedded_corpus_is_text(tmp_path):
    run("embedded_corpus.py", tmp_path / "corpus.txt")
    assert len((tmp_path / "corpus.txt").read_text(encoding="utf-8").split()) > 500_000


@pytest.mark.exhaustive
def test_the_training_script_learns(corpus_dir):
    lines = run("train_lm.py", corpus_dir).splitlines()
    perplexities = [float(line.split()[-1]) for line in lines]
    assert len(perplexities) == 5 and perplexities[-1] < 12  # the unigram model has 26


SMALL = {
    "fit_keras.py": "--vocab-size 100 --embedding-size 4 --hidden-size 5 --num-sampled 9 --batch-size 2"
    " --sequence-length 3 --steps 5 --repeats 1".split(),
    "vocab_scaling.py": ["--vocab-sizes", 1000, 2000, "--batch-size", 2, "--repeats", 1],
    "startup.py": ["--vocab-size", 1000, "--repeats", 1],
    "sampler.py": ["--sizes", 100, 10, "--num-labels", 5, "--repeats", 2],
    "evaluation.py": ["--vocab-size", 1000, "--words", 64, "--generated", 2, "--repeats", 1],
    "train_step.py": "--peers jax-dense --vocab-size 1000 --embedding-size 8 --hidden-size 16 --num-sampled 20"
    " --batch-size 2 --repeats 1".split(),
    "step_parts.py": "--vocab-size 1000 --embedding-size 8 --hidden-size 16 --num-sampled 20 --batch-size 2"
    " --repeats 1".split(),
    "gpu.py": "--batch-sizes 2 --divisor 100 --repeats 1".split(),
    "gpu_kernels.py": "--vocab-size 100 --embedding-size 4 --hidden-size 5 --num-sampled 9 --batch-size 2"
    " --sequence-length 3 --steps 2 --repeats 1".split(),
    "score.py": "--vocab-size 100 --hidden-size 8 --sentences 9 --repeats 1".split(),
    "scaling.py": ["--devices", 2, "--divisor", 1000],
    "num_sampled.py": "DATA --num-sampled 20 0 --steps 20 --minutes 0.01 --embedding-size 8 --hidden-size 8"
    " --eval-tokens 100".split(),
    "prepare.py": ["TEXT", "--repeats", 1],
    "equal_time.py": "DATA --minutes 0.02 --embedding-size 8 --hidden-size 8 --eval-tokens 100".split(),
    "conversion.py": ["--vocab-size", 1000],
    "kills.py": ["--kills", 3],
    "checkpoint.py": ["--vocab-size", 1000, "--repeats", 1],
}
QUICK = {"train_step.py", "prepare.py"}


def test_every_benchmark_has_a_small_size():
    scripts = {path.name for path in (EXAMPLES / "benchmarks").glob("*.py")}
    assert scripts - set(SMALL) == {"collectives.py", "measure.py", "peers.py"}  # which the others import


@pytest.mark.parametrize("script", quick_if(lambda script: script in QUICK, [(script,) for script in SMALL]))
@pytest.mark.slow
def test_benchmarks_print_a_table(script, corpus_dir, text_file):
    if script in ("equal_time.py", "gpu.py", "score.py"):
        pytest.importorskip("torch")
    paths = {"DATA": corpus_dir, "TEXT": text_file}
    output = run(f"benchmarks/{script}", *(paths.get(argument, argument) for argument in SMALL[script]))
    lines = output.strip().splitlines()
    assert "OTHER BITS" not in output
    assert any(line.startswith("| ---") for line in lines) and lines[-1].count("|") == lines[-2].count("|")


@pytest.mark.exhaustive
def test_thirty_kills_at_random_instants():
    lines = run("benchmarks/kills.py", "--kills", 30, timeout=1200).splitlines()
    assert lines[-1].startswith("| 30 ") and lines[-1].endswith("same bits |")
