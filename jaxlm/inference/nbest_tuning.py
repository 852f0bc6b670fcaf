"""Tunes the weight and the scales of rescoring by word error rate on a development list."""

import itertools
import logging
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

import numpy as np

from jaxlm.errors import InputError, require_packages, shorten
from jaxlm.inference.nbest import require_consecutive, total_score
from jaxlm.inference.nbest_costs import Costs, add_costs
from jaxlm.inference.nbest_forms import Hypothesis

logger = logging.getLogger(__name__)

WEIGHTS = tuple(n / 10 for n in range(11))
ACOUSTIC_SCALES = (0.0, 0.04, 0.05, 0.06, 0.07, 0.083, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 1.0)
TABLE_SCALES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Tuned(NamedTuple):
    """The best settings, and their word error rate."""

    weight: float
    acoustic_scale: float
    scales: dict[str, float]  # of tables of costs, by name
    word_error_rate: float  # errors / words of the references

    def describe(self) -> str:
        """Returns the settings as options of `jaxlm rescore`, and the word error rate."""
        scales = "".join(f" {name}={scale:g}" for name, scale in self.scales.items())
        scales = f" --scale{scales}" if scales else ""
        options = f"--weight {self.weight:g} --acoustic-scale {self.acoustic_scale:g}{scales}"
        return f"{options}: word error rate {self.word_error_rate:.2%}"


class _List(NamedTuple):
    """A development list. The hypotheses of a group are consecutive."""

    keys: list[str]
    scores: tuple[np.ndarray, np.ndarray, np.ndarray]  # score, lm_score and log_probability, each [N]
    errors: np.ndarray  # [N] word errors
    starts: np.ndarray  # [groups] first hypothesis of each group
    num_words: int  # of the references


def tune(
    hypotheses: Iterable[Hypothesis],
    references: Mapping[str, str],
    tables: Mapping[str, Costs] | None = None,
    scales: Mapping[str, float] | None = None,
) -> Tuned:
    """Returns the weight, the acoustic scale and the scales of tables with the lowest word error rate.

    Weight and acoustic scale are searched on a grid; of several with the lowest rate, the one in their middle counts,
    since it is the least sensitive. With several tables, the scale of each one but the first is searched in turn, each
    time with the grid, until nothing is gained.

    Args:
      hypotheses: of a development list, with the log-probabilities that `rescore` gives them.
      references: the correct text of each group.
      tables: of costs, by name; the score of a hypothesis is minus their scaled sum.
      scales: where the search begins, by name; 1 for other tables.

    Raises:
      InputError: a group is not consecutive or has no reference, or the references have no words of the list.
      MissingPackageError: `rapidfuzz` is not installed.
    """
    require_packages("tune", "rapidfuzz")
    given, tables = _read_list(hypotheses, references), tables or {}
    errors, best = _search_grid(given, dict(scales or {}))
    before = errors + 1
    while errors < before:
        before = errors
        for name, value in itertools.product([*tables][1:], TABLE_SCALES):
            changed = best.scales | {name: value}
            costs = add_costs(tables, changed) or {}
            score = -np.array([costs[key] for key in given.keys])
            found = _search_grid(given._replace(scores=(score, *given.scores[1:])), changed)
            errors, best = min((errors, best), found, key=lambda each: each[0])
    return best


def _read_list(hypotheses: Iterable[Hypothesis], references: Mapping[str, str]) -> _List:
    from rapidfuzz.distance import Levenshtein

    keys: list[str] = []
    scores: list[tuple[float, float, float]] = []
    errors: list[int] = []
    starts: dict[str, int] = {}
    num_words, matches, example = 0, False, ""
    for group, members in groupby(hypotheses, key=lambda hypothesis: hypothesis.group):
        require_consecutive(group, starts)
        if group not in references:
            raise InputError(f"The references have no text for {group!r}; expected one for each group of the list.")
        reference = references[group].split()
        starts[group] = len(keys)
        num_words += len(reference)
        example = example or "".join(reference[:1])
        for one in members:
            keys.append(one.fields[0])
            scores.append((one.score, one.lm_score, one.log_probability))
            errors.append(Levenshtein.distance(one.text.split(), reference))
            matches = matches or not set(reference).isdisjoint(one.text.split())
    if not num_words:
        raise InputError("The references of this list have no words.")
    if not matches:
        raise InputError(
            f"No word of the references, such as {shorten(example)!r}, is in the list; write both in the same case."
        )
    if missing := len(references.keys() - starts.keys()):
        logger.warning("%d of %d references have no hypotheses; they do not count", missing, len(references))
    score, lm_score, log_probability = np.array(scores).T
    return _List(keys, (score, lm_score, log_probability), np.array(errors), np.array([*starts.values()]), num_words)


def _search_grid(given: _List, scales: dict[str, float]) -> tuple[int, Tuned]:
    """Returns the fewest errors, and the weight and the acoustic scale in the middle of those that have them."""
    errors = np.array([[_count_errors(given, weight, scale) for scale in ACOUSTIC_SCALES] for weight in WEIGHTS])
    best = np.argwhere(errors == errors.min())  # [settings, 2] places on the grid
    weight, scale = best[np.square(best - best.mean(axis=0)).sum(axis=1).argmin()]
    fewest = int(errors.min())
    return fewest, Tuned(WEIGHTS[weight], ACOUSTIC_SCALES[scale], scales, fewest / given.num_words)


def _count_errors(given: _List, weight: float, acoustic_scale: float) -> int:
    """Returns the word errors of the hypotheses with the highest totals, the first one of equals in each group."""
    totals = total_score(given.scores, weight, acoustic_scale)
    sizes = np.diff([*given.starts, totals.size])
    highest = totals == np.repeat(np.maximum.reduceat(totals, given.starts), sizes)
    best = np.minimum.reduceat(np.where(highest, np.arange(totals.size), totals.size), given.starts)
    return int(given.errors[best].sum())


def read_references(lines: Iterable[str], by_line: bool) -> dict[str, str]:
    """Reads the reference texts: `utterance words` as Kaldi has them, or by line from 0, as Moses' ids count.

    Args:
      lines: without line ends.
      by_line: whether the number of the line is the group.

    Raises:
      InputError: an utterance comes twice.
    """
    if by_line:
        return {str(number): line for number, line in enumerate(lines)}
    references: dict[str, str] = {}
    for key, *text in (line.split(maxsplit=1) for line in lines if line.strip()):
        if key in references:
            raise InputError(f"The references have {key!r} twice; expected `utterance words`, each utterance once.")
        references[key] = "".join(text)
    return references
