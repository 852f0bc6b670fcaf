"""Curves of a run as a PNG: exact validation perplexity and sampled training loss."""

import math
from pathlib import Path

from jaxlm.data.corpus import Corpus, unigram_loss
from jaxlm.errors import InputError, require_packages
from jaxlm.files import PathLike, staged
from jaxlm.runs.directory import load_config
from jaxlm.runs.metrics import read_metrics

CURVE_FILE = "curve.png"


def plot_metrics(directory: PathLike, corpus: Corpus) -> Path:
    """Draws curve.png into a run directory, from its metrics.jsonl, and returns the path.

    Args:
      directory: of the run.
      corpus: that it was trained on.

    Raises:
      MissingPackageError: the extra `report` is not installed.
      InputError: the directory is not a run, or it was not trained yet.
    """
    require_packages("report", "matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    directory = Path(directory)
    config = load_config(directory).train
    if config is None:
        raise InputError(f"{directory} has no curve: it was not trained yet. Train it with `jaxlm train`.")
    words = config.batch_size * config.sequence_length / 1e6
    rows = read_metrics(directory)
    valid = [(row["step"] * words, row["valid_perplexity"]) for row in rows if "valid_perplexity" in row]
    train = [(row["step"] * words, row["train_loss"]) for row in rows if "train_loss" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    unigram = math.exp(unigram_loss(corpus.valid, corpus.counts))
    left.axhline(unigram, color="gray", linestyle="--", label=f"unigram model {unigram:,.0f}")
    if valid:
        left.plot(*zip(*valid, strict=True), marker="o", label=f"jaxlm {valid[-1][1]:,.1f}")
    left.set(title="validation perplexity (exact)", xlabel="million words read", yscale="log")
    left.yaxis.set_major_formatter("{x:,.0f}")
    left.yaxis.set_minor_formatter("{x:,.0f}")
    left.legend()
    if train:
        right.plot(*zip(*train, strict=True))
    kind = "exact" if config.loss == "full" else f"{config.num_sampled} sampled classes"
    right.set(title=f"training loss in nats ({kind})", xlabel="million words read")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path = directory / CURVE_FILE
    with staged(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
    return path
