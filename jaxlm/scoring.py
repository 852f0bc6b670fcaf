"""Scores of lines of text: exact log-probabilities of words, with their ranks and the entropies around them."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.errors import require
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel
from jaxlm.vocabulary import EOS, Vocabulary
from jaxlm.word_statistics import WordStatistics, word_statistics

TIME_STEPS = (8, 32, 128)  # of a batch of lines; longer ones are read in parts
WINDOW = 16  # batches of words looked at together, so that lines of one length lie side by side
MAX_LINES = 4096  # in a window

Piece = tuple[np.ndarray, np.ndarray]  # outputs of the LSTM [n, D], and the positions of their labels in the window


class LineScore(NamedTuple):
    """What a model says of the words of a line. A word that does not count has NaN, and rank 0."""

    words: list[str]  # of the line, with `<eos>` at its end
    unknown: np.ndarray  # [N] bool, whether the vocabulary lacks the word
    log_probabilities: np.ndarray  # [N] float64, in nats
    ranks: np.ndarray  # [N] int64, 1 for the most likely word
    entropies: np.ndarray  # [N] float64, of the distribution that the word was drawn from, in nats

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
        loss = -self.log_probability / self.num_words if self.num_words else math.nan
        return math.exp(loss) if not loss >= 700 else math.inf


class _Line(NamedTuple):
    words: list[str]
    ids: np.ndarray  # [N] int32, -1 for words that the vocabulary has no id for
    unknown: np.ndarray  # [N] bool


def score(
    model: LanguageModel,
    vocabulary: Vocabulary,
    lines: Iterable[str],
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
      lines: texts without line ends.
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
    >>> model = LanguageModel(ModelConfig(vocab_size=4, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    >>> [(line.words, line.num_unknown) for line in score(model, vocabulary, ["the open sea"])]
    [(['the', 'open', 'sea', '<eos>'], 1)]
    """
    size = model.config.vocab_size
    require(len(vocabulary) == size, "vocabulary", f"{size} words, as the model has", len(vocabulary))
    require(unk_log_prob <= 0, "unk_log_prob", "a log-probability, at most 0", unk_log_prob)
    require(batch_words >= 1, "batch_words", "at least 1", batch_words)
    return _scores(_Reader(model, batch_words), vocabulary, lines, carry, unk_log_prob, ignore_unk)


def _scores(
    reader: "_Reader", vocabulary: Vocabulary, lines: Iterable[str], carry: bool, unk_log_prob: float, ignore_unk: bool
) -> Iterator[LineScore]:
    eos = np.array([] if vocabulary.eos is None else [vocabulary.eos], np.int32)
    before = eos  # what comes before the first word of a text
    for window in _windows((_encode(vocabulary, line) for line in lines), reader.batch_words):
        kept = [line.ids[line.ids >= 0] for line in window]
        ids = np.concatenate(kept)
        slots = np.cumsum([0, *map(len, kept)])  # of the lines in the results of the window
        if carry:
            inputs = np.concatenate([before, ids])[:-1]
            pieces = reader.read_text(_Sequence(inputs, ids.size - inputs.size))
            before = np.concatenate([before, ids])[-1:]
        else:
            contexts = [np.concatenate([eos, line])[:-1] for line in kept]
            pieces = reader.read_sentences(
                [_Sequence(inputs, end - len(inputs)) for inputs, end in zip(contexts, slots[1:].tolist(), strict=True)]
            )
        results = reader.statistics(ids, pieces)
        if vocabulary.unk is not None:
            results[0][ids == vocabulary.unk] += np.nan if ignore_unk else unk_log_prob
        for line, begin, end in zip(window, slots, slots[1:], strict=False):
            yield _line_score(line, [result[begin:end] for result in results])


def _encode(vocabulary: Vocabulary, line: str) -> _Line:
    words = [word for word in vocabulary.tokenize(line) if word != "\n"]
    ids = vocabulary.ids_of(words)
    unknown = ids == (-1 if vocabulary.unk is None else vocabulary.unk)
    if vocabulary.eos is None:
        return _Line(words, ids, unknown)
    return _Line([*words, EOS], np.append(ids, np.int32(vocabulary.eos)), np.append(unknown, False))


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
    score = LineScore(line.words, line.unknown, *(np.full(line.ids.size, fill) for fill in (np.nan, 0, np.nan)))
    for values, found in zip(score[2:], (log_probabilities, ranks, entropies), strict=True):
        values[where] = found[counts]
    return score


class _Sequence(NamedTuple):
    inputs: np.ndarray  # [n] int32
    slot: int  # of the label of the first input in the results


class _Reader:
    """Runs a model over sequences. Their LSTM is padded; their outputs are packed, so that the softmax is not."""

    def __init__(self, model: LanguageModel, batch_words: int):
        self.model, self.batch_words = model, batch_words
        self.graphdef, self.params = nnx.split(model)
        self.carry = model.initial_carry(1)  # of the text that `read_text` reads part by part

    def read_text(self, text: _Sequence) -> Iterator[Piece]:
        """Yields the outputs of the next part of one text, whose state carries over, without padding."""
        start = 0
        while start < text.inputs.size:
            length = max(n for n in (1, *TIME_STEPS) if n <= text.inputs.size - start)
            ids = text.inputs[None, start : start + length]
            outputs, self.carry = _outputs(self.graphdef, self.params, ids, self.carry)
            yield np.asarray(outputs)[0], text.slot + start + np.arange(length)
            start += length

    def read_sentences(self, sequences: list[_Sequence]) -> Iterator[Piece]:
        """Yields the outputs of sequences, each from the zero state, those of similar lengths side by side."""
        sequences = sorted(sequences, key=lambda sequence: sequence.inputs.size)
        for shorter, length in zip((0, *TIME_STEPS), TIME_STEPS, strict=False):
            longest = length if length < TIME_STEPS[-1] else np.inf
            group = [sequence for sequence in sequences if shorter < sequence.inputs.size <= longest]
            size = max(1, self.batch_words // length) if len(group) > 1 else 1
            for start in range(0, len(group), size):
                yield from self._read_batch(group[start : start + size], size, length)

    def _read_batch(self, batch: list[_Sequence], batch_size: int, length: int) -> Iterator[Piece]:
        carry = self.model.initial_carry(batch_size)
        for start in range(0, max(sequence.inputs.size for sequence in batch), length):
            ids = np.zeros((batch_size, length), np.int32)
            parts = [sequence.inputs[start : start + length] for sequence in batch]
            for row, part in zip(ids, parts, strict=False):
                row[: part.size] = part
            outputs, carry = _outputs(self.graphdef, self.params, ids, carry)
            for row, sequence, part in zip(np.asarray(outputs), batch, parts, strict=False):
                yield row[: part.size], sequence.slot + start + np.arange(part.size)

    def statistics(self, labels: np.ndarray, pieces: Iterator[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns log-probabilities, ranks and entropies of labels `[M]`; NaN, 0, NaN where no piece leads to one."""
        results = np.full(labels.size, np.nan), np.zeros(labels.size, np.int64), np.full(labels.size, np.nan)
        for outputs, slots in _packed(pieces, self.batch_words):
            found = _statistics(self.graphdef, self.params, outputs, np.resize(labels[slots], len(outputs)))
            for result, values in zip(results, found, strict=True):
                result[slots] = np.asarray(values)[: slots.size]
        return results


def _packed(pieces: Iterator[Piece], size: int) -> Iterator[Piece]:
    """Yields pieces joined, and cut, to batches of `size` outputs; the last ones have few sizes, and are padded."""
    outputs: np.ndarray | None = None
    slots, used = np.zeros(size, np.int64), 0
    for piece, positions in pieces:
        outputs = np.zeros((size, piece.shape[1]), np.float32) if outputs is None else outputs
        start = 0
        while start < positions.size:
            end = start + min(size - used, positions.size - start)
            filled = slice(used, used + end - start)
            outputs[filled], slots[filled] = piece[start:end], positions[start:end]
            used, start = filled.stop, end
            if used == size:
                yield outputs, slots
                used = 0
    sizes = [size // 4**n for n in range(4) if size // 4**n >= 16] or [size]
    start = 0
    while start < used and outputs is not None:
        rest = used - start
        part = max((n for n in sizes if n <= rest or 4 * rest >= 3 * n), default=min(sizes))
        end = min(start + part, used)
        yield np.resize(outputs[start:end], (part, outputs.shape[1])), slots[start:end]
        start = end


@partial(jax.jit, static_argnums=0)
def _outputs(
    graphdef: nnx.GraphDef, params: Any, ids: jax.Array | np.ndarray, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, params)
    return model.hidden(model.embed(jnp.asarray(ids)), carry)


@partial(jax.jit, static_argnums=0)
def _statistics(
    graphdef: nnx.GraphDef, params: Any, outputs: jax.Array | np.ndarray, labels: jax.Array | np.ndarray
) -> WordStatistics:
    model = nnx.merge(graphdef, params)
    biases = None if model.biases is None else model.biases[...]
    return word_statistics(jnp.asarray(outputs), model.weights[...], labels, biases=biases)
