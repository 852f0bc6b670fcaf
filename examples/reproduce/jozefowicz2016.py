"""LSTM-2048-512 of Jozefowicz et al. 2016, "Exploring the Limits of Language Modeling", on the billion-word benchmark.

    python examples/reproduce/jozefowicz2016.py --data 1-billion-word-language-modeling-benchmark-r13output

Prepares the text, trains for some minutes to measure the speed, and prints the length of the whole run in hours,
without evaluations and checkpoints; --full then trains it. The paper projects the recurrent state too, and jaxlm the
outputs alone: its LSTM has more weights. https://arxiv.org/abs/1602.02410; the text: Chelba et al. 2013,
https://arxiv.org/abs/1312.3005
"""

import statistics
from pathlib import Path

from texts import report, run_script

import jaxlm
from jaxlm.data.word_lists import read_vocabulary
from jaxlm.runs.metrics import read_metrics

TRAINING, HELD_OUT = "training-monolingual.tokenized.shuffled", "heldout-monolingual.tokenized.shuffled"
NUM_SHARDS, PUBLISHED = 99, "47.5 after 5 epochs; 43.7 at the end"


def open_corpus(data: Path, out: Path, vocabulary: Path | None, check: bool) -> jaxlm.Corpus:
    """Prepares the shards, or opens the corpus that was prepared before."""
    shards = sorted((data / TRAINING).glob("news.en-*-of-00100"))
    held_out = sorted((data / HELD_OUT).glob("news.en.heldout-*-of-00050"))
    if check and (len(shards), len(held_out)) != (NUM_SHARDS, 50):
        raise jaxlm.InputError(
            "Expected the billion-word benchmark, described in Chelba et al. 2013, https://arxiv.org/abs/1312.3005:"
            f" {NUM_SHARDS} shards in {data / TRAINING} and 50 in {data / HELD_OUT}. Received: {len(shards)} and"
            f" {len(held_out)}."
        )
    if not out.exists():
        words = None if vocabulary is None else read_vocabulary(vocabulary)
        texts = {"test": held_out[0], "valid": held_out[1]}  # the benchmark's test text is the first one
        jaxlm.prepare(shards, out, **texts, vocab_size=793_471, tokenization="whitespace", vocabulary=words)
    return jaxlm.load_corpus(out)


def main(
    data: Path,
    out: Path = Path("runs/jozefowicz2016"),
    vocabulary: Path | None = None,
    epochs: int = 5,
    trial_minutes: float = 3.0,
    full: bool = False,
    divisor: int = 1,
    check: bool = True,
) -> None:
    """Plans the run of the paper's model from the speed of a trial, or trains it.

    Args:
      data: Directory of the benchmark.
      out: Directory of the corpus and the runs.
      vocabulary: List of the words to keep, one per line, with or without counts.
      epochs: Length of the whole run in epochs.
      trial_minutes: Length of the trial.
      full: Train the whole run after the trial, or resume it.
      divisor: Divides the widths and the number of samples, for a trial on a small machine.
      check: Stop if there are not as many shards as in the benchmark.
    """
    corpus = open_corpus(data, out / "data", vocabulary, check)
    sizes = {"embedding_size": 512 // divisor, "hidden_size": 2048 // divisor, "projection_size": 512 // divisor}
    rates = 0.1, 0.0, 0.1  # after the embedding, the LSTM and the projection
    model = jaxlm.ModelConfig(len(corpus.vocabulary), **sizes, dropout_rates=rates)
    config = jaxlm.TrainConfig(batch_size=128, sequence_length=20, num_sampled=8192 // divisor)
    trial = jaxlm.ScheduleConfig(minutes=trial_minutes, eval_every=10**9, eval_tokens=20_000)
    if not jaxlm.train(corpus, out / "trial", model, config, trial):  # it was stopped
        return
    rows = read_metrics(out / "trial")
    speed = statistics.median_high([row["words_per_second"] for row in rows if "words_per_second" in row])
    hours = epochs * corpus.train.size / speed / 3600
    print(f"{epochs} epochs of {corpus.train.size:,} words at {speed:,.0f} words/s: {hours:,.1f} hours")
    if full:
        whole = jaxlm.ScheduleConfig(epochs=epochs, eval_every=20_000, eval_tokens=200_000)
        if jaxlm.train(corpus, out / "run", model, config, whole):  # unless it was stopped
            report(out / "run", corpus.test, PUBLISHED)


if __name__ == "__main__":
    run_script(main)
