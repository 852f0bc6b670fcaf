"""A report of one run, or of several side by side: one HTML file that needs no network."""

import dataclasses
import logging
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config_checks import require_seed
from jaxlm.data.corpus import Corpus, PathLike, load_corpus, oov_rate, unigram_loss
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError, require_packages
from jaxlm.files import write_text
from jaxlm.model.language_model import LanguageModel
from jaxlm.reports import word_sections as words
from jaxlm.reports.frequency_bands import frequency_bands
from jaxlm.reports.html import Cell, figure, figures, page, paragraph, section, table
from jaxlm.reports.svg import Curve, curves
from jaxlm.runs.directory import RunConfig, load_model
from jaxlm.runs.doctor import examine
from jaxlm.runs.metrics import read_metrics

REPORT_FILE = "report.html"

logger = logging.getLogger(__name__)


class ReportedRun(NamedTuple):
    """A run and the parts of it that the report shows."""

    name: str
    model: LanguageModel
    vocabulary: Vocabulary
    config: RunConfig
    metrics: list[dict[str, Any]]
    corpus: Corpus | None  # None if it is no longer where it was during training
    scored: words.ScoredText | None  # some validation text, likewise


def write_report(
    directories: PathLike | Sequence[PathLike], out: PathLike | None = None, *, max_tokens: int = 2000, seed: int = 0
) -> Path:
    """Writes a report of runs as one HTML file, and returns its path.

    Args:
      directories: one run or several, made by `jaxlm train`.
      out: file to write; by default report.html in the first run directory.
      max_tokens: words of the validation text whose exact surprisal is computed.
      seed: random seed of the samples.

    Raises:
      MissingPackageError: the extra `report` is not installed.
      InputError: a directory is not a run or has no checkpoint, or `out` cannot be written.
    """
    require_packages("report", "matplotlib", "jinja2")
    require_seed(seed)
    paths = [Path(each) for each in ([directories] if isinstance(directories, str | os.PathLike) else directories)]
    if not paths:
        raise InputError("No run: expected at least one run directory.")
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    runs = [_load(path, name, max_tokens) for path, name in zip(paths, names, strict=True)]
    body = [_summary(runs), _curves(runs), _bands(runs)]
    for run in runs:
        body += words.sections(run.model, run.vocabulary, run.scored, seed, f" ({run.name})" if len(runs) > 1 else "")
    body += [_settings(runs), _machine()]
    path = Path(out) if out else paths[0] / REPORT_FILE
    write_text(path, page(" and ".join(names), body))
    return path


def _load(path: Path, name: str, max_tokens: int) -> ReportedRun:
    model, vocabulary, config = load_model(path)
    corpus = None
    try:
        corpus = load_corpus(config.data) if config.data else None
    except InputError as error:
        logger.warning("%s; the report of %s is without the validation text", error, path)
    if corpus is not None and corpus.vocabulary != vocabulary:
        logger.warning("%s has another vocabulary than %s, whose report is without it", config.data, path)
        corpus = None
    scored = None if corpus is None else words.score_text(model, corpus.valid[: max_tokens + 1])
    return ReportedRun(name, model, vocabulary, config, read_metrics(path), corpus, scored)


def differences(runs: Sequence[ReportedRun]) -> str:
    """Returns why the perplexities of runs do not compare; "" if they do."""
    vocabularies = {run.vocabulary.checksum for run in runs}
    texts = {run.config.fingerprints["valid"] for run in runs if "valid" in run.config.fingerprints}
    reasons = ["vocabularies"] * (len(vocabularies) > 1) + ["validation texts"] * (len(texts) > 1)
    return f"The perplexities of these runs do not compare: their {' and '.join(reasons)} differ." if reasons else ""


def _columns(caption: str, runs: Sequence[ReportedRun], rows: dict[str, list[Cell]]) -> str:
    """Returns a table with a column for each run."""
    header = ["", *(run.name for run in runs)] if len(runs) > 1 else ["", "value"]
    return table(caption, header, [[name, *values] for name, values in rows.items()])


def _summary(runs: Sequence[ReportedRun]) -> str:
    rows: dict[str, list[Cell]] = {}

    def add(name: str, value: Cell) -> None:
        rows.setdefault(name, []).append(value)

    for run in runs:
        evaluations = [row for row in run.metrics if "valid_perplexity" in row]
        corpus, train = run.corpus, run.config.train
        best = min((row["valid_perplexity"] for row in evaluations), default=None)
        steps = max((row["step"] for row in run.metrics), default=0)
        seconds = max((row.get("seconds", 0.0) for row in run.metrics), default=0.0)
        add("exact validation perplexity, best", best)
        unigram = None if corpus is None else math.exp(unigram_loss(corpus.valid, corpus.counts))
        add("unigram model, which knows only word frequencies", unigram)
        add("words read", steps * train.batch_size * train.sequence_length if train else None)
        add("minutes of training", seconds / 60)
        add("vocabulary", len(run.vocabulary))
        for part in ("train", "valid"):
            tokens = None if corpus is None else getattr(corpus, part)
            add(f"words of the {part} text", None if tokens is None else int(tokens.size))
            unknown = None if tokens is None else f"{oov_rate(tokens, run.vocabulary):.2%}"
            add(f"unknown in the {part} text", unknown)
    warning = differences(runs)
    if warning:
        logger.warning(warning)
    remark = [paragraph(warning)] if warning else []
    return section("Result", *remark, _columns("Perplexity, and the text it was reached with", runs, rows))


def _curves(runs: Sequence[ReportedRun]) -> str:
    by_words, by_time, losses, gaps = [], [], [], []
    rows: list[list[Cell]] = []
    for run in runs:
        train = run.config.train
        scale = train.batch_size * train.sequence_length / 1e6 if train else 0.0
        logged = [row for row in run.metrics if "train_loss" in row and "seconds" in row]
        evaluated = [row for row in run.metrics if "valid_perplexity" in row]
        if not logged or not evaluated:
            continue
        steps = np.array([row["step"] for row in evaluated])
        perplexities = [row["valid_perplexity"] for row in evaluated]
        minutes = np.interp(steps, [row["step"] for row in logged], [row["seconds"] / 60 for row in logged])
        by_words.append((run.name, steps * scale, perplexities))
        by_time.append((run.name, minutes, perplexities))
        losses.append((run.name, [row["step"] * scale for row in logged], [row["train_loss"] for row in logged]))
        gaps.append((run.name, steps * scale, [row.get("loss_gap", np.nan) for row in evaluated]))
        for step, minute, row in zip(steps.tolist(), minutes.tolist(), evaluated, strict=True):
            rows.append([run.name, step, minute, row["valid_perplexity"], row.get("loss_gap")])
    if not by_words:
        return section("Curves", paragraph("Nothing was logged yet."))
    shown = [
        ("perplexity-words", "validation perplexity (exact)", "million words read", by_words, True),
        ("perplexity-time", "validation perplexity (exact)", "minutes", by_time, True),
        ("training-loss", "training loss in nats (sampled classes)", "million words read", losses, False),
        ("loss-gap", "what sampling hides, in nats", "million words read", gaps, False),
    ]
    return section("Curves", figures(_curve(*arguments) for arguments in shown), _evaluations(rows))


def _curve(name: str, title: str, x_label: str, lines: Sequence[Curve], log: bool) -> str:
    return figure(curves(name, title, x_label, lines, log), f"{title[0].upper()}{title[1:]}, by {x_label}.")


def _evaluations(rows: list[list[Cell]]) -> str:
    header = ["run", "step", "minutes", "exact perplexity", "exact minus sampled loss (nats)"]
    return (
        paragraph(
            "The training loss over sampled classes is not comparable with an exact loss. What sampling hides is the"
            " exact loss of a training batch minus its training loss; if it grows, sample more classes."
        )
        + f"<details><summary>The numbers</summary>{table('Evaluations', header, rows)}</details>"
    )


def _bands(runs: Sequence[ReportedRun]) -> str:
    tables = []
    for run in runs:
        if run.corpus is None or run.scored is None:
            continue
        scored, vocabulary = run.scored, run.vocabulary
        rows: list[list[Cell]] = []
        for band in frequency_bands(scored.ids, scored.log_probabilities, run.corpus.counts, run.config.train):
            examples = " ".join(vocabulary.words[band.first : min(band.last + 1, band.first + 4)])
            perplexity = None if math.isnan(band.perplexity) else band.perplexity
            every = None if math.isnan(band.inclusion) else 1 / max(band.inclusion, 1e-30)
            rows.append([f"{band.first:,} to {band.last:,}", examples, f"{band.share:.1%}", perplexity, every])
        caption = f"Exact perplexity by frequency, {scored.ids.size:,} words of the validation text of {run.name}"
        header = ["words, by rank", "the first ones", "share of the text", "perplexity", "sampled once in ... steps"]
        tables.append(table(caption, header, rows))
    missing = paragraph("The validation text is not where it was during training.")
    return section("Frequent and rare words", *(tables or [missing]))


def _settings(runs: Sequence[ReportedRun]) -> str:
    rows: dict[str, list[Cell]] = {}
    for n, run in enumerate(runs):
        for part in (run.config.model, run.config.train, run.config.schedule):
            for name, value in (dataclasses.asdict(part) if part else {}).items():
                rows.setdefault(name, [None] * len(runs))[n] = value if isinstance(value, int | float) else str(value)
        rows.setdefault("data", [None] * len(runs))[n] = run.config.data or None
        for name, value in run.config.fingerprints.items():
            rows.setdefault(f"fingerprint of {name}", [None] * len(runs))[n] = value
    return section("Settings and data", _columns("Settings", runs, rows))


def _machine() -> str:
    found = [[finding.subject, finding.result] for finding in examine()]
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
    return section("Machine", table("The machine that wrote this report", ["", ""], [["processor", processor], *found]))
