"""Report of one run, or of several side by side: a single HTML file without links."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config_checks import require_integer, require_seed
from jaxlm.data.corpus import Corpus, load_corpus, oov_rate, unigram_loss
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError, require_packages
from jaxlm.files import PathLike, require_output_file, write_text
from jaxlm.model.language_model import LanguageModel
from jaxlm.reports.frequency_bands import frequency_bands
from jaxlm.reports.html import Cell, Rows, render
from jaxlm.reports.svg import Figure, curves
from jaxlm.reports.word_sections import ScoredText, score_text, word_sections
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
    corpus: Corpus | None  # None if it was moved or deleted since training
    scored: ScoredText | None  # part of the validation text, likewise


def write_report(
    directories: PathLike | Sequence[PathLike], out: PathLike | None = None, *, max_tokens: int = 2048, seed: int = 0
) -> Path:
    """Writes a report of runs as one HTML file, and returns its path.

    Args:
      directories: one run or several, made by `jaxlm train`.
      out: file to write; by default report.html in the first run directory.
      max_tokens: words of the validation text whose exact surprisal is computed, from its beginning; 0 for all.
      seed: random seed of the samples.

    Raises:
      MissingPackageError: the extra `report` is not installed.
      InputError: a directory is not a run or has no checkpoint, or `out` cannot be written.
    """
    require_packages("report", "matplotlib", "jinja2")
    require_seed(seed)
    require_integer("max_tokens", max_tokens, 0)
    paths = [Path(each) for each in ([directories] if isinstance(directories, str | os.PathLike) else directories)]
    if not paths:
        raise InputError("No run: expected at least one run directory.")
    path = Path(out) if out else paths[0] / REPORT_FILE
    if out:
        require_output_file(path)
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    runs = [_load(path, name, max_tokens) for path, name in zip(paths, names, strict=True)]
    warning = differences(runs)
    if warning:
        logger.warning(warning)
    trained = [run for run in runs if _logged(run) and _evaluated(run)]
    samples = any(map(_samples, trained))
    page = render(
        title=" and ".join(names),
        columns=["", *(names if len(runs) > 1 else ["value"])],
        warning=warning,
        summary=_side_by_side([_summary(run) for run in runs]),
        curves=_curves(trained),
        samples=samples,
        evaluations=[row if samples else row[:-1] for run in trained for row in _evaluations(run)],
        bands=[_bands(run, run.scored, run.corpus) for run in runs if run.scored and run.corpus],
        words=[word_sections(run.name, run.model, run.vocabulary, run.scored, seed) for run in runs],
        settings=_side_by_side([_settings(run.config) for run in runs]),
        machine=[[finding.subject, finding.result] for finding in examine()],
    )
    write_text(path, page)
    return path


def _load(path: Path, name: str, max_tokens: int) -> ReportedRun:
    model, vocabulary, config = load_model(path)
    corpus = None
    try:
        corpus = load_corpus(config.data) if config.data else None
    except InputError as error:
        logger.warning("the report of %s is without the validation text: %s", path, error)
    if corpus is not None and corpus.vocabulary != vocabulary:
        logger.warning("the report of %s is without the validation text: %s has another vocabulary", path, config.data)
        corpus = None
    scored = None if corpus is None else score_text(model, corpus.valid[: max_tokens + 1 if max_tokens else None])
    return ReportedRun(name, model, vocabulary, config, read_metrics(path), corpus, scored)


def differences(runs: Sequence[ReportedRun]) -> str:
    """Returns the reason that perplexities of runs, or of one run, are not comparable; "" if they are."""
    vocabularies = {run.vocabulary.checksum for run in runs}
    texts = {run.config.fingerprints["valid"] for run in runs if "valid" in run.config.fingerprints}
    sizes = {row["valid_words"] for run in runs for row in _evaluated(run) if "valid_words" in row}
    found = {"vocabularies": vocabularies, "validation texts": texts, "numbers of evaluated words": sizes}
    reasons = " and ".join(name for name, values in found.items() if len(values) > 1)
    subject = "these runs" if len(runs) > 1 else "this run"
    return f"The perplexities of {subject} are not comparable: their {reasons} differ." if reasons else ""


def _side_by_side(columns: Sequence[dict[str, Cell]]) -> Rows:
    """Returns a row for each name, with a value from each column."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name) for column in columns)] for name in names]


def _summary(run: ReportedRun) -> dict[str, Cell]:
    corpus, train, evaluated = run.corpus, run.config.train, _evaluated(run)
    steps = max((row["step"] for row in run.metrics), default=0)
    unigram = None if corpus is None else math.exp(unigram_loss(corpus.valid, corpus.counts))
    values: dict[str, Cell] = {
        "exact validation perplexity, best": min((row["valid_perplexity"] for row in evaluated), default=None),
        "words of an evaluation": max((row["valid_words"] for row in evaluated if "valid_words" in row), default=None),
        "unigram model, from word frequencies alone, on the whole text": unigram,
        "words read": steps * train.batch_size * train.sequence_length if train else None,
        "minutes of training": max((row.get("seconds", 0.0) for row in run.metrics), default=0.0) / 60,
        "vocabulary": len(run.vocabulary),
    }
    for part in ("train", "valid"):
        tokens = None if corpus is None else getattr(corpus, part)
        values[f"words of the {part} text"] = None if tokens is None else int(tokens.size)
        values[f"unknown in the {part} text"] = None if tokens is None else f"{oov_rate(tokens, run.vocabulary):.2%}"
    return values


def _logged(run: ReportedRun) -> list[dict[str, Any]]:
    return [row for row in run.metrics if "train_loss" in row and "seconds" in row]


def _evaluated(run: ReportedRun) -> list[dict[str, Any]]:
    return [row for row in run.metrics if "valid_perplexity" in row]


def _samples(run: ReportedRun) -> bool:
    return run.config.train is None or run.config.train.loss != "full"


def _evaluations(run: ReportedRun) -> Iterator[tuple[str, int, float, float, float | None]]:
    """Yields name, step, minutes, exact perplexity, and sampling gap of each evaluation; None with loss "full"."""
    logged = _logged(run)
    steps, minutes = [row["step"] for row in logged], [row["seconds"] / 60 for row in logged]
    for row in _evaluated(run):
        minute = float(np.interp(row["step"], steps, minutes))
        yield run.name, row["step"], minute, row["valid_perplexity"], row.get("loss_gap") if _samples(run) else None


def _curves(runs: Sequence[ReportedRun]) -> list[Figure]:
    by_words, by_time, losses, gaps = [], [], [], []
    for run in runs:
        train, logged = run.config.train, _logged(run)
        scale = train.batch_size * train.sequence_length / 1e6 if train else 0.0
        _, steps, minutes, perplexities, gap = zip(*_evaluations(run), strict=True)
        words_read = [step * scale for step in steps]
        by_words.append((run.name, words_read, perplexities))
        by_time.append((run.name, minutes, perplexities))
        losses.append((run.name, [row["step"] * scale for row in logged], [row["train_loss"] for row in logged]))
        if _samples(run):
            gaps.append((run.name, words_read, [np.nan if value is None else value for value in gap]))
    if not runs:
        return []
    kind = {0: "exact", len(runs): "sampled classes"}.get(len(gaps), "exact or sampled classes")
    figures = [
        curves("perplexity-words", "validation perplexity (exact)", "million words read", by_words, log=True),
        curves("perplexity-time", "validation perplexity (exact)", "minutes", by_time, log=True),
        curves("training-loss", f"training loss in nats ({kind})", "million words read", losses),
    ]
    return [*figures, curves("loss-gap", "sampling gap in nats", "million words read", gaps)] if gaps else figures


def _bands(run: ReportedRun, scored: ScoredText, corpus: Corpus) -> tuple[str, int, Rows]:
    """Returns the name of a run, the number of words that were scored, and a row for each band of frequency."""
    rows: list[list[Cell]] = []
    for band in frequency_bands(scored.ids, scored.log_probabilities, corpus.counts, run.config.train):
        examples = " ".join(run.vocabulary.words[i] for i in band.ids[:4])
        perplexity = None if math.isnan(band.perplexity) else band.perplexity
        every = None if math.isnan(band.inclusion) else 1 / max(band.inclusion, 1e-30)
        rows.append([f"{band.first:,} to {band.last:,}", examples, f"{band.share:.1%}", perplexity, every])
    return run.name, scored.ids.size, rows


def _settings(config: RunConfig) -> dict[str, Cell]:
    values: dict[str, Cell] = {}
    for part in (config.model, config.train, config.schedule):
        for name, value in (vars(part) if part else {}).items():
            values[name] = value if isinstance(value, int | float) else str(value)
    fingerprints = {f"fingerprint of {name}": value for name, value in config.fingerprints.items()}
    return values | {"use_word_vectors": config.use_word_vectors, "data": config.data or None} | fingerprints
