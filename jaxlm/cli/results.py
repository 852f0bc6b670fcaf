"""Prints the results of training and evaluation."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.errors import MissingPackageError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.data.corpus import Corpus
    from jaxlm.inference.perplexity import Evaluation


def print_result(run: Path, corpus: "Corpus", evaluation: "Evaluation | None", mesh: "Mesh | None") -> None:
    """Writes and prints what a run ends with, in process 0."""
    import jax

    if jax.process_index():
        return
    from jaxlm.parallel.mesh import on_host
    from jaxlm.reports.curve import plot_metrics
    from jaxlm.reports.report import write_report

    try:
        print(f"curve: {plot_metrics(run, corpus)}")
        # a model that needs a mesh is read by the processor
        with nullcontext() if mesh is None else on_host():
            print(f"report: {write_report([run])}")
    except MissingPackageError as error:
        print(f"No curve and no report are written. {error}")
    if evaluation is not None:
        print_evaluation("valid", evaluation, corpus)


def print_evaluation(split: str, evaluation: "Evaluation", corpus: "Corpus", how: str = "") -> None:
    from jaxlm.data.corpus import unigram_loss
    from jaxlm.inference.perplexity import DIVERGED

    unigram = unigram_loss(getattr(corpus, split), corpus.counts)
    if evaluation.loss > unigram + DIVERGED:
        print(
            f"{split}: exact loss {evaluation.loss:.2f} nats per word on {evaluation.num_tokens:,} words, far above the"
            f" {unigram:.2f} of the unigram model: the model has diverged"
        )
        return
    print(
        f"{split}: exact perplexity {evaluation.perplexity:.2f} on {evaluation.num_tokens:,} words{how}"
        f" (unigram model, which knows only the word frequencies: {math.exp(unigram):.2f})"
    )
