"""Rescoring of n-best lists: totals, and the best hypothesis of each group."""

import logging
import math
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import groupby, tee
from typing import Any

from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError, require
from jaxlm.inference.nbest_forms import Hypothesis
from jaxlm.inference.scoring import LineScore, score
from jaxlm.model.language_model import LanguageModel

logger = logging.getLogger(__name__)


def rescore(
    model: LanguageModel,
    vocabulary: Vocabulary,
    hypotheses: Iterable[Hypothesis],
    *,
    weight: float = 0.5,
    acoustic_scale: float = 1.0,
    unk_log_prob: float = 0.0,
    seen: Callable[[Iterator[LineScore]], Iterator[LineScore]] = iter,
) -> Iterator[Hypothesis]:
    """Yields hypotheses with the log-probability of the language model, and their new total.

    total = acoustic_scale * score + (1 - weight) * lm_score + weight * log_probability

    Args:
      model: the language model.
      vocabulary: of the model.
      hypotheses: of `read_nbest`; any number of them takes the same memory.
      weight: of the language model. From 0 to 1 it interpolates with the language model that made the list.
      acoustic_scale: of the list's own scores; Kaldi's, about 1/12, is the inverse of the language model weight.
      unk_log_prob: added for each unknown word, in nats, as in `jaxlm.score`.
      seen: function that the line scores pass through, such as `UnknownWords.count`.

    Raises:
      InputError: an argument is out of range.
    """
    require(0 <= weight < math.inf, "weight", "a number of at least 0", weight)
    require(0 <= acoustic_scale < math.inf, "acoustic_scale", "a number of at least 0", acoustic_scale)
    hypotheses, given = tee(hypotheses)
    lines = seen(score(model, vocabulary, (each.text for each in given), unk_log_prob=unk_log_prob))
    for hypothesis, line in zip(hypotheses, lines, strict=True):
        require(weight <= 1 or not hypothesis.lm_score, "weight", "at most 1, with another language model", weight)
        hypothesis = hypothesis._replace(log_probability=line.log_probability)
        scores = hypothesis.score, hypothesis.lm_score, hypothesis.log_probability
        yield hypothesis._replace(total=total_score(scores, weight, acoustic_scale))


def total_score(scores: tuple[Any, Any, Any], weight: float, acoustic_scale: float) -> Any:
    """Returns the total of `rescore`. A score with a factor of 0 does not count, infinite or not.

    Args:
      scores: score, lm_score and log_probability, numbers or arrays.
      weight: of the language model.
      acoustic_scale: of the score.
    """
    factors = (acoustic_scale, 1 - weight, weight)
    return sum(factor * score for factor, score in zip(factors, scores, strict=True) if factor)


def best_paths(hypotheses: Iterable[Hypothesis]) -> Iterator[Hypothesis]:
    """Yields the hypothesis of each group with the highest total; the first one of equals.

    A number that Moses' ids skip is a sentence without hypotheses: it yields an empty one, so that lines stay aligned.

    Raises:
      InputError: the hypotheses of a group are not next to each other, or Moses' ids decrease.
    """
    seen: set[str] = set()
    before: int | None = None
    for group, members in groupby(hypotheses, key=lambda hypothesis: hypothesis.group):
        require_consecutive(group, seen)
        seen.add(group)
        best = max(members, key=lambda hypothesis: hypothesis.total)
        current = int(group) if best.is_moses and group.isdecimal() else None
        if current is not None:
            for missing in _skipped_ids(before, current):
                yield Hypothesis(str(missing), "", 0.0, (str(missing), ""))
        before = current
        yield best


def _skipped_ids(before: int | None, current: int) -> range:
    """Returns the Moses ids that were skipped before a group; none before the first group."""
    if before is None:
        if current > 0:
            logger.warning("the list begins with id %d: no lines are written for the ids before it", current)
        return range(0)
    if current < before:  # the lines, which have no ids, would be those of other sentences
        raise InputError(f"Id {current} comes after {before}; sort the n-best list by its ids, with `sort -n -s`.")
    return range(before + 1, current)


def require_consecutive(group: str, seen: Container[str]) -> None:
    """Raises `InputError` if the hypotheses of a group come after those of another one again."""
    if group in seen:
        raise InputError(f"The hypotheses of {group!r} are not consecutive; sort the n-best list.")
