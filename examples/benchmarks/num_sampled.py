"""Shows the effect of the number of sampled classes: exact perplexity after equal steps and after equal time.

    jaxlm prepare TEXT --vocab-size 50000 --out data
    python examples/benchmarks/num_sampled.py data

Each row trains the same model from the same start. Time counts training steps only.
"""

import math
import tempfile
from pathlib import Path

import tyro
from measure import machine, print_table

import jaxlm
from jaxlm.data.corpus import Corpus
from jaxlm.runs.directory import read_metrics


def train(
    corpus: Corpus, model: jaxlm.ModelConfig, num_sampled: int, eval_tokens: int, **length: float
) -> tuple[float, dict, float]:
    """Returns the exact validation perplexity, the last line of the metrics, and words/s (NaN if too short)."""
    config = jaxlm.TrainConfig(num_sampled=num_sampled) if num_sampled else jaxlm.TrainConfig(loss="full")
    schedule = jaxlm.ScheduleConfig(eval_every=10**9, eval_tokens=eval_tokens, **length)
    with tempfile.TemporaryDirectory() as directory:
        evaluation = jaxlm.train(corpus, Path(directory) / "run", model, config, schedule, progress=False)
        rows = read_metrics(Path(directory) / "run")
    assert evaluation is not None
    speeds = [row["words_per_second"] for row in rows if "words_per_second" in row]
    return evaluation.perplexity, rows[-1], speeds[-1] if speeds else math.nan


def main(
    data: tyro.conf.Positional[Path],
    num_sampled: tuple[int, ...] = (64, 256, 1024, 4096, 0),
    steps: int = 500,
    minutes: float = 1.0,
    embedding_size: int = 256,
    hidden_size: int = 256,
    eval_tokens: int = 20_000,
) -> None:
    """Prints a table.

    Args:
      data: Directory made by `jaxlm prepare`.
      num_sampled: Numbers of sampled classes; 0 for the exact full softmax.
      steps: Length of the runs with equal steps.
      minutes: Length of the runs with equal time.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      eval_tokens: Words of validation text.
    """
    corpus = jaxlm.load_corpus(data)
    model = jaxlm.ModelConfig(len(corpus.vocabulary), embedding_size, hidden_size)
    words = jaxlm.TrainConfig.batch_size * jaxlm.TrainConfig.sequence_length
    rows = []
    for number in num_sampled:
        equal_steps, last, speed = train(corpus, model, number, eval_tokens, steps=steps)
        equal_time, timed, _ = train(corpus, model, number, eval_tokens, minutes=minutes)
        name = f"{number:,}" if number else "full softmax"
        measured = [f"{1e3 * words / speed:.0f}", f"{last['loss_gap']:.2f}", f"{equal_steps:.1f}"]
        rows.append([name, *measured, timed["step"], f"{equal_time:.1f}"])
    print(machine())
    print(
        f"V = {len(corpus.vocabulary):,}, E = {embedding_size}, H = {hidden_size}, {eval_tokens:,} words of validation"
    )
    print_table(
        ["S", "ms per step", "loss gap", f"perplexity, {steps} steps", "steps in time", f"perplexity, {minutes:g} min"],
        rows,
    )


if __name__ == "__main__":
    tyro.cli(main)
