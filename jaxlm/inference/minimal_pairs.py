"""Minimal pairs: how often a model finds the acceptable sentence more likely than the unacceptable one."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from typing import NamedTuple

from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.inference.scoring import LineScore, score
from jaxlm.model.language_model import LanguageModel

GROUPS = ("uid", "phenomenon", "group", "linguistics_term", "field")  # names of a pair's group, the first one found
GOOD = frozenset({"sentence_good", "good", "good_sentence", "grammatical", "acceptable"})
BAD = frozenset({"sentence_bad", "bad", "bad_sentence", "ungrammatical", "unacceptable"})
Z = 1.959964  # of a 95 % interval


class Pair(NamedTuple):
    """Two sentences that differ in their acceptability, and their log-probabilities in nats."""

    good: str
    bad: str
    group: str = ""
    log_probability_good: float = math.nan
    log_probability_bad: float = math.nan

    @property
    def is_right(self) -> bool:
        """Whether the acceptable sentence is more likely."""
        return self.log_probability_good > self.log_probability_bad


class Accuracy(NamedTuple):
    """The fraction of pairs that a model judges right, with a 95 % interval."""

    group: str
    pairs: int
    right: int

    @property
    def accuracy(self) -> float:
        """right / pairs."""
        return self.right / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson's score.

        References:
          Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953

        >>> [round(bound, 3) for bound in Accuracy("", 10, 8).interval]
        [0.49, 0.943]
        """
        n, p = self.pairs, self.accuracy
        center, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
        return (center - half) / (1 + Z**2 / n), (center + half) / (1 + Z**2 / n)


def read_pairs(lines: Iterable[str], name: str) -> Iterator[Pair]:
    """Yields pairs: JSON objects with `sentence_good` and `sentence_bad`, as in BLiMP, or columns divided by tabs.

    Columns are good, bad and optionally group; a first line with such names as BLiMP's keys names the columns.

    Args:
      lines: without line ends; empty ones are passed over.
      name: of the file, to name in errors.

    Raises:
      InputError: a line has another form, and is named; or there are no pairs.

    >>> next(read_pairs(["the cats sleep\\tthe cats sleeps"], "pairs")).bad
    'the cats sleeps'
    """
    header: list[str] | None = None
    has_pairs = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith("{"):
                values = {_plain(key): value for key, value in json.loads(line).items()}
            else:
                cells = _cells(line)
                columns = list(map(_plain, cells))
                if header is None and GOOD.intersection(columns) and BAD.intersection(columns):
                    header = columns
                    continue
                header = header or ["sentence_good", "sentence_bad", "group"]
                if len(cells) > len(header):
                    raise ValueError("more columns than names")
                values = dict(zip(header, cells, strict=False))
            good, bad = [next(values[key] for key in values if key in names) for names in (GOOD, BAD)]
            if not (isinstance(good, str) and isinstance(bad, str) and good.strip() and bad.strip()):
                raise TypeError("sentences must be text")
            group = next((str(values[key]) for key in GROUPS if values.get(key) not in (None, "")), "")
        except (ValueError, StopIteration, TypeError, RecursionError) as error:
            raise InputError(
                f"{name}, line {number}: expected a JSON object with `sentence_good` and `sentence_bad`, two or three"
                " columns divided by tabs, or more of them below a line with their names. Received:"
                f" {line[:100]!r}."
            ) from error
        has_pairs = True
        yield Pair(good, bad, group)
    if not has_pairs:
        raise InputError(f"{name} has no pairs; expected sentences, also below a line with the names of columns.")


def _plain(name: str) -> str:
    """Returns the name of a column, as it is compared: in lower case, without blanks around it."""
    return name.strip().lower()


def _cells(line: str) -> list[str]:
    """Returns the columns of a line. Quotation marks that do not enclose a whole column belong to the sentence."""
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error:
        return line.split("\t")


def score_pairs(
    model: LanguageModel,
    vocabulary: Vocabulary,
    pairs: Iterable[Pair],
    *,
    unk_log_prob: float = 0.0,
    seen: Callable[[Iterator[LineScore]], Iterator[LineScore]] = iter,
) -> Iterator[Pair]:
    """Yields pairs with the log-probabilities of their sentences.

    Sentences that differ only in unknown words have the same ids, and get the same log-probability.

    Args:
      model: the language model.
      vocabulary: of the model.
      pairs: of `read_pairs`.
      unk_log_prob: added for each unknown word, in nats, as in `jaxlm.score`.
      seen: function that the line scores pass through, such as `UnknownWords.count`.
    """
    pairs, given = tee(pairs)
    sentences = (sentence for pair in given for sentence in (pair.good, pair.bad))
    scores = seen(score(model, vocabulary, sentences, unk_log_prob=unk_log_prob))
    for pair, good, bad in zip(pairs, scores, scores, strict=True):
        good_ids, bad_ids = (ids[ids >= 0].tolist() for ids in map(vocabulary.ids_of, (good.words, bad.words)))
        bad = good if good_ids == bad_ids else bad  # read in two batches, they would differ by rounding
        yield pair._replace(log_probability_good=good.log_probability, log_probability_bad=bad.log_probability)


def accuracies(pairs: Iterable[Pair]) -> list[Accuracy]:
    """Returns the accuracy of each group, by name, and that of all pairs as the last, named "all"."""
    counts: dict[str, list[int]] = {}
    for pair in pairs:
        for group in {pair.group, ""}:
            count = counts.setdefault(group, [0, 0])
            count[0] += 1
            count[1] += pair.is_right
    groups = [Accuracy(group, *counts[group]) for group in sorted(counts) if group]
    return groups + [Accuracy("all", *counts[""])] if counts else []
