"""The examples and the benchmarks run as written, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import quick_if

EXAMPLES = Path(__file__).parent.parent / "examples"
XLA_FLAGS = {"train_lm.py": ""}  # with enough steps to repay optimization


def run(script: str, *arguments: object, timeout: int = 300, code: int = 0) -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": XLA_FLAGS.get(script, os.environ["XLA_FLAGS"]),
    }
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert result.returncode == code, result.stderr[-3000:]
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


SIZES = "--vocab-size 1000 --embedding-size 4 --hidden-size 8 --num-sampled 9 --batch-size 2 --repeats 1".split()
SMALL = {
    "fit_keras.py": "--vocab-size 100 --embedding-size 4 --hidden-size 5 --num-sampled 9 --batch-size 2"
    " --sequence-length 3 --steps 5 --repeats 1".split(),
    "any_body.py": "--vocab-size 90 --num-sampled 9 --batch-size 2 --sequence-length 3 --steps 5"
    " --keras-steps 4 --bodies bidirectional recommender".split(),
    "vocab_scaling.py": ["--vocab-sizes", 1000, 2000, *SIZES[2:]],
    "startup.py": ["--vocab-size", 1000, "--repeats", 1],
    "evaluation.py": [*SIZES, "--words", 64, "--generated", 2],
    "train_step.py": [*SIZES, "--peers", "jax-dense", "unknown"],
    "step_parts.py": SIZES,
    "gpu.py": [*SIZES, "--steps", 2],
    "compile_options.py": [*SIZES[:-2], "--steps", 2, "--compute-dtypes", "float32"],
    "score.py": [*SIZES, "--sentences", 9],
    "scaling.py": ["--devices", 2, "--divisor", 1000],
    "prepare.py": ["TEXT", "--repeats", 1],
    "equal_time.py": "DATA --methods jaxlm torch-sampled torch-full --minutes 0.02 --embedding-size 8 --hidden-size 8"
    " --eval-tokens 100".split(),
    "conversion.py": ["--vocab-size", 1000],
    "checkpoint.py": SIZES,
    "measure_gpu.py": ["DATA", "--parts", "train", "compilation", "--out", "OUT", "--small"],
}
SHARED = {"collectives.py", "measure.py", "peers.py", "problem.py", "tf_peers.py", "torch_peers.py"}
QUICK = {"prepare.py"}


def test_every_benchmark_has_a_small_size():
    scripts = {path.name for path in (EXAMPLES / "benchmarks").glob("*.py")}
    assert scripts - set(SMALL) == SHARED  # which the others import


@pytest.mark.parametrize("script", quick_if(lambda script: script in QUICK, [(script,) for script in SMALL]))
@pytest.mark.slow
def test_benchmarks_print_a_table(script, corpus_dir, text_file, tmp_path):
    if script in ("equal_time.py", "score.py"):
        pytest.importorskip("torch")
    paths = {"DATA": corpus_dir, "TEXT": text_file, "OUT": tmp_path}
    arguments = (paths.get(argument, argument) for argument in SMALL[script])
    output = run(f"benchmarks/{script}", *arguments, code=int("unknown" in SMALL[script]))
    lines = output.strip().splitlines()
    assert ("| unknown | failed |" in output) == ("unknown" in SMALL[script])
    assert any(line.startswith("| ---") for line in lines) and lines[-1].count("|") == lines[-2].count("|")
