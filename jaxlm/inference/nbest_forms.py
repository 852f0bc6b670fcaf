"""N-best lists of speech recognition and translation in the forms of several toolkits."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jaxlm.errors import InputError
from jaxlm.inference.nbest_costs import Costs, is_number, named_line, number_of

SEPARATOR = "|||"  # of Moses' fields
FEATURE = "jaxlm="  # name of the log-probability among Moses' features
KEY = re.compile(r"(.+)-([1-9]\d*)")  # of Kaldi: utterance and number
SRILM_HEADER = "NBestList1.0"
BYTELOG = 1024 / 10000.5  # nats in a unit of SRILM's first form
LN10 = math.log(10)
FORMS = (
    "`utterance-N words` with N from 1 (Kaldi), `id words` (rnnlm), `id ||| text [||| features] [||| score]` (Moses,"
    " Nematus), or SRILM's lists"
)


class Hypothesis(NamedTuple):
    """One line of an n-best list."""

    group: str  # utterance or sentence that it belongs to
    text: str
    score: float  # that the list gives it without its language model, the higher the better; 0 if the list has none
    fields: tuple[str, ...]  # of Moses, as written; the key alone in other forms
    lm_score: float = 0.0  # of the language model that made the list, in nats; 0 if it is not known
    log_probability: float = 0.0  # of our language model, in nats
    total: float = 0.0  # all together

    @property
    def is_moses(self) -> bool:
        """Whether the line has Moses' separators."""
        return len(self.fields) > 1


def read_nbest(
    lines: Iterable[str], name: str, costs: Costs | None = None, lm_costs: Costs | None = None
) -> Iterator[Hypothesis]:
    """Yields the hypotheses of an n-best list. Its form is that of the first line.

    Args:
      lines: without line ends; empty ones are passed over.
      name: of the list, to name in errors, and as the only group of a list of SRILM.
      costs: of Kaldi's keys, negative log-probabilities; without them all scores are 0.
      lm_costs: those of the language model that made the list.

    Raises:
      InputError: a line has another form than the first one, a key that is wrong or comes twice, or a score that is
        no number, named with the line; the list is empty; or there are costs for a list that is not Kaldi's.

    >>> next(read_nbest(["utt7-1 it was the sea"], "list")).text
    'it was the sea'
    >>> next(read_nbest(["0 ||| it was ||| LM= -9 ||| -4.5"], "list")).score
    -4.5
    """
    parse: Callable[[str], Hypothesis] | None = None
    keys: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.strip() == SRILM_HEADER:
            continue
        with named_line(name, number, line):
            parse = parse or _parser(line, name, costs, lm_costs)
            hypothesis = parse(line)
            key = hypothesis.fields[0]
            if key != hypothesis.group:  # Kaldi's
                if key in keys:
                    raise InputError(f"each key once; {key} comes twice.")
                keys.add(key)
        yield hypothesis
    if parse is None:
        raise InputError(f"{name} has no hypotheses; expected {FORMS}.")


def _parser(line: str, name: str, costs: Costs | None, lm_costs: Costs | None) -> Callable[[str], Hypothesis]:
    """Returns the function that reads lines of the form of the first one."""
    parse = _parser_without_costs(line, name)
    if parse is None:
        return lambda line: _parse_kaldi(line, costs, lm_costs)
    for option, table in (("costs", costs), ("lm_costs", lm_costs)):
        if table is not None:
            raise InputError(f"a list of Kaldi, `utterance-N words`, beside `{option}`, which have its keys.")
    return parse


def _parser_without_costs(line: str, name: str) -> Callable[[str], Hypothesis] | None:
    """Returns the function that reads lines of the form of the first one; None for Kaldi's."""
    first = line.split()
    if SEPARATOR in line:
        num_fields = min(len(line.split(SEPARATOR)), 4)
        return lambda line: _parse_moses(line, num_fields)
    if re.fullmatch(r"\(\S+\)", first[0]):
        return lambda line: _parse_srilm_bytelogs(line, name)
    if len(first) > 2 and first[2].isdecimal() and is_number(first[0]) and is_number(first[1]):
        if "." in first[0] + first[1]:
            return lambda line: _parse_srilm(line, name)
    return _parse_rnnlm if first[0].isdecimal() else None


def _parse_moses(line: str, num_fields: int) -> Hypothesis:
    fields = tuple(field.strip() for field in line.split(SEPARATOR))
    if num_fields < 2 or min(len(fields), 4) != num_fields:
        raise InputError("`id ||| text [||| features] [||| score]`, with as many fields as in the first line.")
    at = "in the fourth field of `id ||| text ||| features ||| score`"
    if num_fields == 3:
        at = "in the third field of `id ||| text ||| score`"
    return Hypothesis(fields[0], fields[1], 0.0 if num_fields == 2 else number_of(fields[num_fields - 1], at), fields)


def _parse_srilm_bytelogs(line: str, name: str) -> Hypothesis:
    number, *words = line.split()
    if not re.fullmatch(r"\(\S+\)", number):
        raise InputError("`(score) words`, as in the first line.")
    return Hypothesis(name, " ".join(words), BYTELOG * number_of(number[1:-1], "in brackets"), (name,))


def _parse_srilm(line: str, name: str) -> Hypothesis:
    acoustic, lm, *rest = [*line.split(), "", ""]
    score, lm_score = (LN10 * number_of(value, "in `acoustic lm N words`") for value in (acoustic, lm))
    return Hypothesis(name, " ".join(rest[1:]).strip(), score, (name,), lm_score)


def _require_words(line: str) -> None:
    """Raises `InputError` for a table, such as `id, text, score`, whose last columns would be read as words."""
    if line.count("\t") > 1:
        raise InputError("words after the first blank; write columns as `id ||| text ||| score`.")


def _parse_rnnlm(line: str) -> Hypothesis:
    key, *words = line.split(maxsplit=1)
    if not key.isdecimal() or SEPARATOR in line:
        raise InputError("`id words`, with a number for id, as in the first line.")
    _require_words(line)
    return Hypothesis(key, "".join(words).strip(), 0.0, (key,))


def _parse_kaldi(line: str, costs: Costs | None, lm_costs: Costs | None) -> Hypothesis:
    key, *text = line.split(maxsplit=1)
    match = KEY.fullmatch(key)
    if match is None or SEPARATOR in line or line.startswith("{"):
        raise InputError(f"{FORMS}; a transcript or JSON is not a list.")
    _require_words(line)
    for name, table in (("costs", costs), ("lm_costs", lm_costs)):
        if table is not None and key not in table:
            raise InputError(f"a cost of {key} in `{name}`.")
    score, lm_score = (0.0 if table is None else -table[key] for table in (costs, lm_costs))
    return Hypothesis(match[1], "".join(text).strip(), score, (key,), lm_score)


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
    group, text, *others = hypothesis.fields
    if len(others) < 2:  # no features: the total alone
        return f" {SEPARATOR} ".join([group, text, f"{hypothesis.total:.9g}"])
    features = f"{others[0]} {FEATURE} {hypothesis.log_probability:.9g}".strip()
    return f" {SEPARATOR} ".join([group, text, features, f"{hypothesis.total:.9g}", *others[2:]])
