"""Scores of lines of text: exact log-probabilities of words, with their ranks and the entropies around them."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxlm.config_checks import require_integer
from jaxlm.data.vocabulary import EOS, Vocabulary
from jaxlm.errors import InputError, require
from jaxlm.inference.batch_reader import Reader, Sequence
from jaxlm.inference.generation import require_vocabulary
from jaxlm.inference.perplexity import perplexity_of
from jaxlm.model.language_model import LanguageModel

WINDOW = 16  # batches of words sorted together by the length of their lines
MAX_LINES = 4096  # in a window
BLANKS = re.compile("[ \t\n\r\f\v]+")


class LineScore(NamedTuple):
    """Scores of the words of a line. A word that does not count has NaN, and rank 0."""

    words: list[str]  # of the line, with `<eos>` at its end
    unknown: np.ndarray  # [N] bool, whether the vocabulary lacks the word
    log_probabilities: np.ndarray  # [N] float64, in nats
    ranks: np.ndarray  # [N] int64, 1 for the most likely word
    entropies: np.ndarray  # [N] float64, of the distribution that the word was drawn from, in nats
    regions: np.ndarray  # [N] int64, from 1: the number, between blanks, of the part of the line that has the word

    @property
    def log_probability(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return float(np.nansum(self.log_probabilities))

    @property
    def num_words(self) -> int:
        """The number of words that count, `<eos>` included."""
        return int((~np.isnan(self.log_probabilities)).sum())

    @property
    def num_unknown(self) -> int:
        """The number of words that the vocabulary lacks."""
        return int(self.unknown.sum())

    @property
    def perplexity(self) -> float:
        """exp(-log_probability / num_words); NaN if no word counts."""
        return perplexity_of(-self.log_probability / self.num_words if self.num_words else math.nan)


class _Line(NamedTuple):
    words: list[str]
    ids: np.ndarray  # [N] int32, -1 for words that the vocabulary has no id for
    unknown: np.ndarray  # [N] bool
    regions: np.ndarray  # [N] int64


def score(
    model: LanguageModel,
    vocabulary: Vocabulary,
    lines: str | Iterable[str],
    *,
    carry: bool = False,
    unk_log_prob: float = 0.0,
    ignore_unk: bool = False,
    batch_words: int = 1024,
) -> Iterator[LineScore]:
    """Yields the exact scores of lines of text, in their order. Memory does not depend on their number.

    The end of a line is a word, `<eos>`, which also comes before the first word. In a vocabulary without `<eos>`
    the first word has nothing before it, and does not count; without `<unk>` unknown words do not count.

    Args:
      model: the language model.
      vocabulary: of the model.
      lines: one or several texts without line ends.
      carry: whether the lines are one text; otherwise each starts from the zero state.
      unk_log_prob: added to the log-probability of `<unk>` for each unknown word, in nats: log of the share of it
        that one word has, such as -log(number of unseen words).
      ignore_unk: whether unknown words do not count; they remain in the context.
      batch_words: words whose distributions are computed together; does not affect the result.

    Returns:
      An iterator over `LineScore`.

    Raises:
      InputError: the vocabulary is not that of the model, or an argument is out of range.

    References:
      `jaxlm.evaluate`, which has the same sums; Smith and Levy 2013, https://doi.org/10.1016/j.cognition.2013.02.013,
      on surprisal and reading times.

    >>> from jaxlm.config import ModelConfig
    >>> vocabulary = Vocabulary(("the", "<eos>", "sea", "<unk>"), None, "words")
    >>> from flax import nnx
    >>> model = LanguageModel(ModelConfig(vocab_size=4, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    >>> [(line.words, line.num_unknown) for line in score(model, vocabulary, ["the open sea"])]
    [(['the', 'open', 'sea', '<eos>'], 1)]
    """
    require_vocabulary(model, vocabulary)
    require(unk_log_prob <= 0, "unk_log_prob", "a log-probability, at most 0", unk_log_prob)
    require(not (ignore_unk and unk_log_prob), "unk_log_prob", "0 with `ignore_unk`", unk_log_prob)
    if unk_log_prob and vocabulary.unk is None:
        raise InputError("The vocabulary has no <unk>, so unknown words do not count: leave out `unk_log_prob`.")
    require_integer("batch_words", batch_words, 1)
    lines = [lines] if isinstance(lines, str) else lines
    return _scores(Reader(model, batch_words), vocabulary, lines, carry, unk_log_prob, ignore_unk)


def _scores(
    reader: Reader, vocabulary: Vocabulary, lines: Iterable[str], carry: bool, unk_log_prob: float, ignore_unk: bool
) -> Iterator[LineScore]:
    eos = np.array([] if vocabulary.eos is None else [vocabulary.eos], np.int32)
    before = eos  # what comes before the first word of a text
    for window in _windows((_encode(vocabulary, line) for line in lines), reader.batch_words):
        kept = [line.ids[line.ids >= 0] for line in window]
        ids = np.concatenate(kept)
        slots = np.cumsum([0, *map(len, kept)])  # of the lines in the results of the window
        if carry:
            inputs = np.concatenate([before, ids])[:-1]
            pieces = reader.read_text(Sequence(inputs, ids.size - inputs.size))
            before = np.concatenate([before, ids])[-1:]
        else:
            contexts = [np.concatenate([eos, line])[:-1] for line in kept]
            pieces = reader.read_sentences(
                [Sequence(inputs, end - len(inputs)) for inputs, end in zip(contexts, slots[1:].tolist(), strict=True)]
            )
        results = reader.statistics(ids, pieces)
        if vocabulary.unk is not None:
            results[0][ids == vocabulary.unk] += np.nan if ignore_unk else unk_log_prob
        for line, begin, end in zip(window, slots, slots[1:], strict=False):
            yield _line_score(line, [result[begin:end] for result in results])


def between_blanks(line: str) -> list[str]:
    """Returns the parts of a line between blanks."""
    return [part for part in BLANKS.split(line) if part]


def regions_of(vocabulary: Vocabulary, line: str) -> list[tuple[str, list[str]]]:
    """Returns the parts of a line between blanks, each with its words.

    >>> regions_of(Vocabulary(("the",), None, "words"), "don't  go.")
    [("don't", ['don', "'", 't']), ('go.', ['go', '.'])]
    """
    return [(part, [word for word in vocabulary.tokenize(part) if word != "\n"]) for part in between_blanks(line)]


def _encode(vocabulary: Vocabulary, line: str) -> _Line:
    require(isinstance(line, str), "lines", "texts", line)
    parts = regions_of(vocabulary, line)
    words = [word for _, inner in parts for word in inner]
    regions = [number for number, (_, inner) in enumerate(parts, start=1) for _ in inner]
    end = len(parts) + 1
    if words[-1:] == [EOS]:  # it stands for the end of the line, which is added below
        words.pop()
        last = regions.pop()
        end = end if last in regions[-1:] else last
    ids = vocabulary.ids_of(words)
    unknown = ids == (-1 if vocabulary.unk is None else vocabulary.unk)
    if vocabulary.eos is not None:
        words, regions = [*words, EOS], [*regions, end]
        ids, unknown = np.append(ids, np.int32(vocabulary.eos)), np.append(unknown, False)
    return _Line(words, ids, unknown, np.array(regions, np.int64))


def _windows(lines: Iterator[_Line], batch_words: int) -> Iterator[list[_Line]]:
    """Yields lines by the thousand words; fewer at first, so that the first results come soon."""
    window, words, limit = [], 0, batch_words
    for line in lines:
        window.append(line)
        words += len(line.words)
        if words >= limit or len(window) == MAX_LINES:
            yield window
            window, words, limit = [], 0, min(2 * limit, WINDOW * batch_words)
    if window:
        yield window


def _line_score(line: _Line, results: list[np.ndarray]) -> LineScore:
    """Returns the score of a line, given the results of the words that have an id."""
    log_probabilities, ranks, entropies = results
    counts = ~np.isnan(log_probabilities)
    where = np.flatnonzero(line.ids >= 0)[counts]
    filled = [np.full(line.ids.size, fill) for fill in (np.nan, 0, np.nan)]
    score = LineScore(line.words, line.unknown, filled[0], filled[1], filled[2], line.regions)
    for values, found in zip(filled, (log_probabilities, ranks, entropies), strict=True):
        values[where] = found[counts]
    return score
