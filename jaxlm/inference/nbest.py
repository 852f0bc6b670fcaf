"""N-best lists of speech recognition and translation, in the forms of Kaldi and Moses, and their rescoring."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError, require
from jaxlm.inference.scoring import score
from jaxlm.model.language_model import LanguageModel

SEPARATOR = "|||"  # of Moses' fields
FEATURE = "jaxlm="  # name of the log-probability among Moses' features
KEY = re.compile(r"(.+)-(\d+)")  # of Kaldi: utterance and number


class Hypothesis(NamedTuple):
    """One line of an n-best list."""

    group: str  # utterance or sentence that it belongs to
    text: str
    score: float  # that the list gives it, the higher the better; 0 if the list has none
    fields: tuple[str, ...]  # of Moses, as written; Kaldi's key alone
    log_probability: float = 0.0  # of the language model, in nats
    total: float = 0.0  # both, interpolated

    @property
    def is_moses(self) -> bool:
        """Whether the line is in Moses' form."""
        return len(self.fields) > 1


def read_nbest(lines: Iterable[str], name: str, costs: Mapping[str, float] | None = None) -> Iterator[Hypothesis]:
    """Yields the hypotheses of an n-best list: `utterance-N words`, or `id ||| text ||| features ||| score`.

    Args:
      lines: without line ends; empty ones are passed over.
      name: of the list, to name in errors.
      costs: of Kaldi's keys, negative log-probabilities; without them all scores are 0.

    Raises:
      InputError: a line has another form than the first one, or a wrong key or score; names the line.

    >>> next(read_nbest(["utt7-1 it was the sea"], "list")).text
    'it was the sea'
    >>> next(read_nbest(["0 ||| it was ||| LM= -9 ||| -4.5"], "list")).score
    -4.5
    """
    is_moses: bool | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        is_moses = SEPARATOR in line if is_moses is None else is_moses
        try:
            yield _parse_moses(line) if is_moses else _parse_kaldi(line, costs)
        except ValueError as error:
            raise InputError(f"{name}, line {number}: expected {error} Received: {line[:100]!r}.") from error


def _parse_moses(line: str) -> Hypothesis:
    fields = tuple(field.strip() for field in line.split(SEPARATOR))
    if len(fields) < 4:
        raise ValueError("`id ||| text ||| features ||| score`.")
    try:
        return Hypothesis(fields[0], fields[1], float(fields[3]), fields)
    except ValueError:
        raise ValueError("a number in the fourth field of `id ||| text ||| features ||| score`.") from None


def _parse_kaldi(line: str, costs: Mapping[str, float] | None) -> Hypothesis:
    key, *text = line.split(maxsplit=1)
    match = KEY.fullmatch(key)
    if match is None or SEPARATOR in line:
        raise ValueError("`utterance-N words`, with a number N.")
    if costs is not None and key not in costs:
        raise ValueError(f"a cost of {key} in `costs`.")
    return Hypothesis(match[1], "".join(text).strip(), 0.0 if costs is None else -costs[key], (key,))


def read_costs(lines: Iterable[str], name: str) -> dict[str, float]:
    """Reads a table of Kaldi, `utterance-N cost`, such as ac_cost or lm_cost.

    Raises:
      InputError: a line has another form; names it.
    """
    costs = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, cost = line.split()
            costs[key] = float(cost)
        except ValueError as error:
            raise InputError(
                f"{name}, line {number}: expected `utterance-N cost`. Received: {line[:100]!r}."
            ) from error
    return costs


def rescore(
    model: LanguageModel,
    vocabulary: Vocabulary,
    hypotheses: Iterable[Hypothesis],
    *,
    weight: float = 0.5,
    unk_log_prob: float = 0.0,
) -> Iterator[Hypothesis]:
    """Yields hypotheses with the log-probability of the language model, and their new total.

    total = (1 - weight) * score + weight * log_probability

    Args:
      model: the language model.
      vocabulary: of the model.
      hypotheses: of `read_nbest`; any number of them takes the same memory.
      weight: of the language model, from 0 to 1.
      unk_log_prob: added for each unknown word, in nats, as in `jaxlm.score`.

    Raises:
      InputError: an argument is out of range.
    """
    require(0 <= weight <= 1, "weight", "a number from 0 to 1", weight)
    waiting: deque[Hypothesis] = deque()  # read by `score`, but not scored yet

    def texts() -> Iterator[str]:
        for hypothesis in hypotheses:
            waiting.append(hypothesis)
            yield hypothesis.text

    for line in score(model, vocabulary, texts(), unk_log_prob=unk_log_prob):
        hypothesis = waiting.popleft()
        total = (1 - weight) * hypothesis.score + weight * line.log_probability
        yield hypothesis._replace(log_probability=line.log_probability, total=total)


def best_paths(hypotheses: Iterable[Hypothesis]) -> Iterator[Hypothesis]:
    """Yields the hypothesis of each group with the highest total; the first one of equals.

    Raises:
      InputError: the hypotheses of a group are not next to each other.
    """
    seen = set()
    for group, members in groupby(hypotheses, key=lambda hypothesis: hypothesis.group):
        if group in seen:
            raise InputError(f"The hypotheses of {group!r} do not stand together; sort the n-best list.")
        seen.add(group)
        yield max(members, key=lambda hypothesis: hypothesis.total)


def format_best(hypothesis: Hypothesis) -> str:
    """Returns the line of a best path: Kaldi's `utterance words`, Moses' text alone."""
    return hypothesis.text if hypothesis.is_moses else f"{hypothesis.group} {hypothesis.text}".rstrip()


def format_scored(hypothesis: Hypothesis) -> str:
    """Returns the line of a list with the score added.

    Kaldi keeps scores in tables of their own: `utterance-N cost`, minus the log-probability. Moses' line gets a
    feature, and the total in place of its score.

    >>> hypothesis = next(read_nbest(["0 ||| it was ||| LM= -9 ||| -4.5"], "list"))
    >>> format_scored(hypothesis._replace(log_probability=-3.25, total=-4))
    '0 ||| it was ||| LM= -9 jaxlm= -3.25 ||| -4'
    """
    if not hypothesis.is_moses:
        return f"{hypothesis.fields[0]} {-hypothesis.log_probability:.9g}"
    group, text, features, _, *others = hypothesis.fields
    features = f"{features} {FEATURE} {hypothesis.log_probability:.9g}".strip()
    return f" {SEPARATOR} ".join([group, text, features, f"{hypothesis.total:.9g}", *others])
