"""Compares the log-probabilities and states of two models on the same ids. Every conversion ends with it."""

from typing import NamedTuple

import numpy as np

from convert.checks.predictor import Predictions, Predictor
from jaxlm.errors import InputError
from jaxlm.matmul import in_float32

# the lowest log-probabilities that are compared, by the type of the weights: log(1e-30), below which a float32 softmax
# has lost its digits; and log(2**-20), since float16 has no numbers between multiples of 2**-24, so that those below
# are rounded by more than the 3 % that are allowed, or to 0
LOWEST = {"float32": -69.0, "float16": -13.8, "bfloat16": -69.0, "int8": -69.0}
# allowed differences of log-probabilities and states, by the type of the weights; differences of probabilities are
# too small to compare, since the probabilities are about 1e-5 at a large vocabulary
TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.25, "int8": 0.3}
BATCH_SIZE, SEQUENCE_LENGTH, SEED = 2, 9, 0  # of the random ids
WINDOW = 35  # words of a text read from each zero state, if the models accept any length

Shape = tuple[int | None, int | None]  # batch and length, None for any


class Difference(NamedTuple):
    """Difference of two models in one quantity."""

    quantity: str
    absolute: float  # largest absolute difference
    relative: float  # largest relative difference
    num_values: int  # compared
    allowed: float  # absolute difference


class Comparison(NamedTuple):
    """Differences of two models."""

    names: tuple[str, str]
    differences: tuple[Difference, ...]  # empty if the vocabularies have different sizes

    @property
    def within_tolerance(self) -> bool:
        """Whether every difference is within its tolerance. NaN never is."""
        return bool(self.differences) and all(row.absolute <= row.allowed for row in self.differences)

    @property
    def max_difference(self) -> float:
        """The largest absolute difference of log-probabilities."""
        return self.differences[0].absolute if self.differences else float("inf")

    @property
    def summary(self) -> str:
        """The largest difference and the allowed one, in one line."""
        if not self.differences:
            return f"{self.names[0]} and {self.names[1]} differ in the size of the vocabulary"
        row = max(self.differences, key=lambda row: (np.isnan(row.absolute), row.absolute - row.allowed))
        return f"the largest difference, of {row.quantity}, is {row.absolute:.4g}, and {row.allowed:g} is allowed"

    def __str__(self) -> str:
        if not self.differences:
            return self.summary
        lines = [f"{'difference':20} {'absolute':>10} {'allowed':>8} {'relative':>10} {'values':>10}"]
        for quantity, absolute, relative, num_values, allowed in self.differences:
            lines.append(f"{quantity:20} {absolute:10.2e} {allowed:8g} {relative:10.2e} {num_values:10,}")
        return "\n".join(lines)


def compare(first: Predictor, second: Predictor) -> Comparison:
    """Compares log-probabilities, and the states that both models return, on random ids of a shape they accept."""
    names = (first.name, second.name)
    if first.vocab_size != second.vocab_size:
        return Comparison(names, ())
    ids = _random_ids(first.vocab_size, max(first.first_id, second.first_id), _shape(first.shape, second.shape))
    ours, theirs = _predict_both(first, second, ids)
    allowed = _tolerance(first, second)
    lowest = max(LOWEST[first.dtype], LOWEST[second.dtype])
    first_logs, second_logs = (np.maximum(each.log_probabilities, lowest) for each in (ours, theirs))
    rows = [_difference("log-probabilities", first_logs, second_logs, allowed)]
    for key in ours.states:
        if key in theirs.states:
            rows.append(_difference(key, ours.states[key], theirs.states[key], allowed))
    return Comparison(names, tuple(rows))


def check(
    first: Predictor, second: Predictor, problem: str = "The converted model differs from its source"
) -> Comparison:
    """Compares two models on random ids.

    Args:
      first: a model.
      second: another model.
      problem: beginning of the error message: the models that differ, and the consequence.

    Raises:
      InputError: they differ; the message shows the largest difference.
    """
    comparison = compare(first, second)
    if not comparison.within_tolerance:
        raise InputError(f"{problem}: {comparison.summary}.")
    return comparison


@in_float32  # as in `_predict_both`
def precomputed(predictor: Predictor) -> Predictor:
    """Computes in advance the predictions that `compare` uses by default, so that the model can be released.

    The `first_id` of the other model must not be larger, and its `shape` must not be narrower.
    """
    ids = _random_ids(predictor.vocab_size, predictor.first_id, _shape(predictor.shape, (None, None)))
    known = {ids.tobytes(): predictor.predict(ids)}
    return predictor._replace(predict=lambda ids: known[ids.tobytes()])


def _shape(
    first: Shape, second: Shape, batch_size: int = BATCH_SIZE, sequence_length: int = SEQUENCE_LENGTH
) -> tuple[int, int]:
    """Returns the batch size and length of a comparison: the fixed ones of the models, or the defaults."""
    names, defaults = ("batch_size", "sequence_length"), (batch_size, sequence_length)
    shape = []
    for name, default, ours, theirs in zip(names, defaults, first, second, strict=True):
        if ours and theirs and ours != theirs:
            raise InputError(
                f"The models accept different shapes: {name} {ours} and {theirs}. Expected the same, or any size."
            )
        shape.append(ours or theirs or default)
    return shape[0], shape[1]


def _random_ids(vocab_size: int, first_id: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(SEED).integers(first_id, vocab_size, shape, np.int32)


def text_losses(first: Predictor, second: Predictor, tokens: np.ndarray, max_tokens: int = 0) -> tuple[np.ndarray, int]:
    """Computes two models' losses on a text, read in windows that each start at the zero state.

    Args:
      first: a model.
      second: another model.
      tokens: `[N]` ids.
      max_tokens: maximum number of words, from the beginning; 0 for all.

    Returns:
      The losses in nats per word, `[2]` float64, and the number of words.

    Raises:
      InputError: the models accept different shapes, or the text is shorter than the fixed length of one.
    """
    words = min(max_tokens or tokens.size, tokens.size - 1)
    sums, count = np.zeros(2), 0
    batch_size, length = _shape(first.shape, second.shape, 1, WINDOW)
    if first.shape[1] or second.shape[1]:  # a model of a fixed length cannot read the remainder
        words -= words % length
        if not words:
            raise InputError(
                f"The text is too short: expected at least {length + 1} words for a model of fixed length {length}."
                f" Received: {tokens.size}."
            )
    for start in range(0, words, length):
        window = tokens[start : min(start + length, words) + 1]
        ids, labels = np.repeat(window[None, :-1], batch_size, axis=0), window[1:]
        labels = labels[-1:] if first.last_only or second.last_only else labels
        for side, predictions in enumerate(_predict_both(first, second, ids)):
            sums[side] -= predictions.log_probabilities[0, np.arange(len(labels)), labels].sum(dtype=np.float64)
        count += len(labels)
    return sums / count, count


def compare_perplexities(
    first: Predictor, second: Predictor, tokens: np.ndarray, max_tokens: int = 0
) -> tuple[Difference, str]:
    """Compares two models' perplexities on a text; see `text_losses`.

    Returns:
      The `Difference` of the losses, with the relative difference of the perplexities, and a line to print.
    """
    (ours, theirs), count = text_losses(first, second, tokens, max_tokens)
    relative = abs(float(np.expm1(theirs - ours)))
    row = Difference("loss of the text", abs(float(ours - theirs)), relative, count, _tolerance(first, second))
    line = f"perplexity of {count:,} words: {first.name} {np.exp(ours):.4f}, {second.name} {np.exp(theirs):.4f}"
    return row, line


def _tolerance(first: Predictor, second: Predictor) -> float:
    return max(TOLERANCES[first.dtype], TOLERANCES[second.dtype])


@in_float32  # also the products of Keras under JAX, which rounds them on a GPU
def _predict_both(first: Predictor, second: Predictor, ids: np.ndarray) -> tuple[Predictions, Predictions]:
    """Returns both models' predictions; only those of the last position if one model is `last_only`."""
    ours, theirs = first.predict(ids), second.predict(ids)
    if first.last_only or second.last_only:
        ours = ours._replace(log_probabilities=ours.log_probabilities[:, -1:])
        theirs = theirs._replace(log_probabilities=theirs.log_probabilities[:, -1:])
    return ours, theirs


def _difference(quantity: str, ours: np.ndarray, theirs: np.ndarray, allowed: float) -> Difference:
    if ours.shape != theirs.shape:
        return Difference(f"{quantity} (shape)", float("inf"), float("inf"), 0, allowed)
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    absolute = np.abs(ours - theirs)
    relative = absolute / np.maximum(np.maximum(np.abs(ours), np.abs(theirs)), 1e-6)
    return Difference(quantity, float(absolute.max()), float(relative.max()), absolute.size, allowed)
