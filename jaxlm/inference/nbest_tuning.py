"""Tunes the weight and the acoustic scale of rescoring by word error rate on a development list."""

import itertools
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from jaxlm.errors import InputError, require_packages
from jaxlm.inference.nbest import Hypothesis, total_score

WEIGHTS = tuple(n / 10 for n in range(11))
ACOUSTIC_SCALES = (0.0, 0.04, 0.05, 0.06, 0.07, 0.083, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 1.0)


class Tuned(NamedTuple):
    """The best weight and scale, and their word error rate."""

    weight: float
    acoustic_scale: float
    word_error_rate: float  # errors / words of the references


def tune(hypotheses: Iterable[Hypothesis], references: Mapping[str, str]) -> Tuned:
    """Returns the weight and acoustic scale with the lowest word error rate; the first of equals.

    Args:
      hypotheses: of a development list, with the log-probabilities that `rescore` gives them.
      references: the right text of each group.

    Raises:
      InputError: a group has no reference, or the references have no words.
      MissingPackageError: `rapidfuzz` is not installed.
    """
    require_packages("tune", "rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    groups, num_words = [], 0
    for group, found in groupby(hypotheses, key=lambda hypothesis: hypothesis.group):
        if group not in references:
            raise InputError(f"The references have no text for {group!r}; expected one for each group of the list.")
        members, reference = list(found), references[group].split()
        groups.append([(one, Levenshtein.distance(one.text.split(), reference)) for one in members])
        num_words += len(reference)
    if not num_words:
        raise InputError("The references of this list have no words.")

    def errors(weight: float, scale: float) -> int:
        best = (max(group, key=lambda pair: total_score(pair[0], weight, scale)) for group in groups)
        return sum(count for _, count in best)

    grid = list(itertools.product(WEIGHTS, ACOUSTIC_SCALES))
    weight, scale = min(grid, key=lambda settings: errors(*settings))
    return Tuned(weight, scale, errors(weight, scale) / num_words)


def read_references(lines: Iterable[str], by_line: bool) -> dict[str, str]:
    """Reads the right texts: `utterance words` as Kaldi has them, or by line from 0, as Moses' ids count.

    Args:
      lines: without line ends.
      by_line: whether the number of the line is the group.
    """
    if by_line:
        return {str(number): line for number, line in enumerate(lines)}
    return {key: "".join(text) for key, *text in (line.split(maxsplit=1) for line in lines if line.strip())}
