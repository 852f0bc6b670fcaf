"""Prints the results of preparation, training and evaluation."""

import logging
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.data.corpus import Corpus
    from jaxlm.inference.perplexity import Evaluation
    from jaxlm.inference.unknown_words import UnknownWords

logger = logging.getLogger(__name__)

ZIPF_LIMIT = 0.3  # nats; English and German novels have 0.12, documentation 0.18, equal counts 0.9 and more


def print_corpus(corpus: "Corpus", advise_size: bool) -> None:
    """Prints sizes and rates of unknown words, and warns of an untrained `<unk>` and of counts far from Zipf's law.

    Args:
      corpus: that was prepared.
      advise_size: whether a smaller vocabulary may be advised.
    """
    from jaxlm.data.corpus import oov_rate
    from jaxlm.data.text_warnings import UNK_MARKERS
    from jaxlm.data.vocabulary import UNK, zipf_divergence

    vocabulary, has_unk = corpus.vocabulary, corpus.vocabulary.unk is not None
    ids = ["no id" if word is None else f"id {word}" for word in (vocabulary.eos, vocabulary.unk)]
    print(f"vocabulary: {len(vocabulary):,} words (<eos> has {ids[0]}, <unk> {ids[1]})")
    texts = {name: getattr(corpus, name) for name in ("train", "valid", "test")}
    unknown = {name: oov_rate(tokens, vocabulary) for name, tokens in texts.items()}
    for name, tokens in texts.items():
        print(f"{name}: {tokens.size:,} words" + (f", {unknown[name]:.2%} unknown" if has_unk else ""))
    if has_unk and not unknown["train"]:
        marker = next((word for word in UNK_MARKERS if word in vocabulary.ids), None)
        advice = ": lower --vocab-size to train it" if advise_size else ""
        advice = f': if {marker} stands for unknown words, give --unk "{marker}"' if marker else advice
        print(f"every training word is in the vocabulary, so {UNK} is never trained{advice}")
    divergence = zipf_divergence(corpus.counts)
    if divergence > ZIPF_LIMIT:
        print(
            f"the word counts are {divergence:.2f} nats from Zipf's law (ordinary text: about 0.1), so log-uniform"
            " sampling is a poor fit: train with --sampler unigram"
        )


def print_result(run: Path, corpus: "Corpus", evaluation: "Evaluation | None", mesh: "Mesh | None") -> None:
    """Writes the curve and the report of a run, and prints its result; in process 0 only."""
    import jax

    if jax.process_index():
        return
    from jaxlm.parallel.mesh import on_host
    from jaxlm.reports.curve import plot_metrics
    from jaxlm.reports.report import write_report

    if evaluation is not None:
        print_evaluation("valid", evaluation, corpus)
    try:
        print(f"curve: {plot_metrics(run, corpus)}")
        # a model that was trained on a mesh is read into the memory of the host
        with nullcontext() if mesh is None else on_host():
            print(f"report: {write_report([run])}")
    except MissingPackageError as error:
        print(f"No curve and no report are written. {error}")
    except InputError as error:  # such as a full disk; the run itself is complete
        logger.warning("%s", error)


def print_evaluation(split: str, evaluation: "Evaluation", corpus: "Corpus", how: str = "") -> None:
    """Prints the exact perplexity of a text, or that the model has diverged."""
    from jaxlm.data.corpus import unigram_loss
    from jaxlm.inference.perplexity import DIVERGED

    tokens = getattr(corpus, split)
    unigram = unigram_loss(tokens, corpus.counts)
    if evaluation.loss > unigram + DIVERGED:
        print(
            f"{split}: exact loss {evaluation.loss:.2f} nats per word on {evaluation.num_tokens:,} words, far above the"
            f" {unigram:.2f} of the unigram model: the model has diverged"
        )
        return
    whole = "" if evaluation.num_tokens == tokens.size - 1 else ", on the whole text"
    print(
        f"{split}: exact perplexity {evaluation.perplexity:.2f} on {evaluation.num_tokens:,} words{how}"
        f" (unigram model, from word frequencies alone{whole}: {math.exp(unigram):.2f})"
    )


def print_unknown(unknown: "UnknownWords") -> None:
    """Prints the number of unknown words, if there are any, after the output."""
    if line := unknown.describe():
        sys.stdout.flush()
        print(line, file=sys.stderr)
