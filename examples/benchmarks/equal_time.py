"""Compares what equal time of training gives: jaxlm, and its alternatives.

    jaxlm prepare TEXT --vocab-size 200000 --out data
    python examples/benchmarks/equal_time.py data --minutes 2 5 --plot-file equal_time.png

Every run has a process of its own and the machine for itself, with the same memory settings and threads. All train the
same model on the same text with Adam, with the same beta_2, and a learning rate that falls linearly over the last half
of the time; they start from jaxlm's unigram biases and word vectors, as far as they have a place for them. keras-full
has Keras' own initializers and betas. The torch methods multiply bfloat16 where jaxlm does, and need the extra `torch`;
"-compiled" after torch-sampled compiles its loss. Compilation is not counted for any of them. Perplexities are exact,
on the same words.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from flax import nnx
from measure import machine, packages_of, print_table, set_equal_terms
from peers import make_peer, start_of
from problem import Problem, ProblemOptions

import jaxlm
from jaxlm.data.batches import train_batch
from jaxlm.data.corpus import Corpus
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.schedule import learning_rate_schedule
from jaxlm.training.settings import default_batch_size

# JAX, with which a peer starts and is evaluated, leaves the memory of a GPU to it
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

Method = Literal[
    "jaxlm", "torch-sampled", "torch-sampled-compiled", "torch-adaptive", "torch-full", "keras-sampled", "keras-full"
]


def train_jaxlm(corpus: Corpus, problem: Problem, minutes: float, eval_tokens: int, seed: int) -> tuple[int, float]:
    """Trains as `jaxlm train` does, with its defaults; returns how many words it read, and the perplexity."""
    schedule = jaxlm.ScheduleConfig(minutes=minutes, eval_every=10**9, eval_tokens=eval_tokens)
    config = jaxlm.TrainConfig(batch_size=default_batch_size(), beta_2=problem.beta_2, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        result = jaxlm.train(corpus, run, problem.model_config, config, schedule, progress=False)
        steps = read_metrics(run)[-1]["step"]
    assert result is not None
    return steps * config.batch_size * config.sequence_length, result.perplexity


def train_peer(
    method: str, corpus: Corpus, problem: Problem, minutes: float, eval_tokens: int, seed: int
) -> tuple[int, float]:
    """Trains with another method; returns how many words it read, and the perplexity."""
    vectors = jaxlm.word_vectors(corpus.train, problem.vocab_size, problem.embedding_size)
    start = start_of(jaxlm.LanguageModel(problem.model_config, corpus.log_unigram, vectors, rngs=nnx.Rngs(seed)))
    peer = make_peer(method, problem, start)
    assert peer.evaluate
    schedule = jaxlm.ScheduleConfig()
    rate_at = learning_rate_schedule(dataclasses.replace(schedule, warmup_steps=0), total_steps=10_000)
    first = train_batch(corpus.train, 0, problem.train_config)
    float(peer.step(first.inputs, first.labels, 0.0))  # compiles
    begin, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - begin) / (60 * minutes)) < 1:
        batch = train_batch(corpus.train, step, problem.train_config)
        warm_up = min(1.0, (step + 1) / schedule.warmup_steps)
        peer.step(batch.inputs, batch.labels, warm_up * float(rate_at(int(10_000 * share))))
        step += 1
    return step * problem.words, peer.evaluate(corpus.valid, eval_tokens)


def plot(path: Path, results: dict[tuple[str, float], tuple[int, float]]) -> None:
    """Draws perplexity against minutes, a line for each method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, method in enumerate(dict.fromkeys(method for method, _ in results)):
        points = sorted((minutes, value) for (name, minutes), (_, value) in results.items() if name == method)
        style = "-" if number % 2 == 0 else "--"  # so that of two lines in the same place both are seen
        axes.plot(*zip(*points, strict=True), style, marker="o", label=f"{method}: {points[-1][1]:,.0f}")
    axes.set(xlabel="minutes of training", ylabel="exact validation perplexity", yscale="log")
    axes.set_xticks(sorted({minutes for _, minutes in results}))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks([100, 200, 500, 1000, 2000, 5000, 10_000], minor=False)
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="method: at the end", frameon=False)
    figure.savefig(path, dpi=150)


def main(
    data: tyro.conf.Positional[Path],
    methods: tuple[Method, ...] = ("jaxlm", "torch-sampled", "torch-adaptive", "keras-sampled", "keras-full"),
    minutes: tuple[float, ...] = (2.0, 5.0),
    problem: ProblemOptions = Problem(optimizer="adam"),  # noqa: B008
    eval_tokens: int = 20_000,
    seed: int = 0,
    plot_file: Path | None = None,
) -> None:
    """Prints a table; exits with 1 if a training failed.

    Args:
      data: Directory made by `jaxlm prepare`.
      methods: What to compare.
      minutes: Lengths of the trainings, not counting evaluation.
      problem: Sizes of the model; the sizes of the steps are those of the others, since jaxlm has its defaults.
      eval_tokens: Words of the validation text to evaluate on.
      seed: Random seed of the values that all but keras-full start from, and of jaxlm's samples.
      plot_file: A PNG file to write.
    """
    vocab_size = len(jaxlm.load_corpus(data).vocabulary)
    sizes = dataclasses.asdict(dataclasses.replace(problem, vocab_size=vocab_size))
    results = {}
    for length in minutes:
        for method in methods:
            arguments = json.dumps([method, str(data), sizes, length, eval_tokens, seed])
            command = [sys.executable, __file__, "run", arguments]
            print(f"{method}, {length:g} minutes", file=sys.stderr, flush=True)
            shared = {} if method == "jaxlm" else SHARED_GPU
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | shared)
            if done.returncode == 0:
                results[method, length] = words, value = json.loads(done.stdout.splitlines()[-1])
                print(f"{words:,} words, perplexity {value:.1f}", file=sys.stderr, flush=True)
    print(machine(*packages_of(method for method, _ in results)))
    print(f"exact validation perplexity on {eval_tokens:,} words, and words read")
    header = ["method", *(f"{length:g} minutes" for length in minutes)]
    cells = {name: f"{value:.1f} ({words / 1e3:,.0f} thousand)" for name, (words, value) in results.items()}
    rows = [[method, *(cells.get((method, length), "failed") for length in minutes)] for method in methods]
    print_table(header, rows)
    if plot_file:
        plot(plot_file, results)
    if any("failed" in row for row in rows):
        sys.exit(1)


def run(method: str, data: str, sizes: dict, minutes: float, eval_tokens: int, seed: int) -> tuple[int, float]:
    """Trains with one method, in a process of its own."""
    settings = jaxlm.load_corpus(data), Problem(**sizes), minutes, eval_tokens, seed
    return train_jaxlm(*settings) if method == "jaxlm" else train_peer(method, *settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(run(*json.loads(sys.argv[2]))))
    else:
        set_equal_terms()
        tyro.cli(main)
