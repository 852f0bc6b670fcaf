"""The parity check every conversion ends with: log-probabilities and states through both models."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.errors import InputError
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel

LOWEST = -69.0  # log(1e-30): below it a float32 softmax has lost its digits
# allowed on log-probabilities and states (a probability is about 1e-5 at a large vocabulary and proves
# nothing), by the precision of the weights
TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.25, "int8": 0.3}
BATCH_SIZE, TIME, SEED = 2, 9, 0  # of the random ids that models are compared on
WINDOW = 35  # words of a text that are read from the zero state


class Predictions(NamedTuple):
    """What a model says of a batch of ids."""

    log_probabilities: np.ndarray  # [batch, time, vocab_size] float32; time is 1 where last_only
    states: Mapping[str, np.ndarray]  # "h_1", "c_1", ... [batch, hidden_size] at the end; what can be seen of them


class Subject(NamedTuple):
    """One side of a comparison."""

    name: str
    vocab_size: int
    predict: Callable[[np.ndarray], Predictions]  # of ids [batch, time] int32, from the zero state
    last_only: bool = False  # predicts after the last id alone
    first_id: int = 0  # 1 where id 0 is masked
    precision: str = "float32"  # of the weights


class Difference(NamedTuple):
    """How far two models are apart in one quantity."""

    quantity: str
    absolute: float  # the largest
    relative: float  # the largest
    compared: int  # numbers
    allowed: float  # of the absolute difference


class Parity(NamedTuple):
    """How far two models are apart."""

    names: tuple[str, str]
    differences: tuple[Difference, ...]

    @property
    def holds(self) -> bool:
        """Whether every difference is within its tolerance (NaN is not)."""
        return bool(self.differences) and all(row.absolute <= row.allowed for row in self.differences)

    @property
    def difference(self) -> float:
        """The largest absolute difference of log-probabilities."""
        return self.differences[0].absolute if self.differences else float("inf")

    def __str__(self) -> str:
        if not self.differences:
            return f"{self.names[0]} and {self.names[1]} differ in the size of the vocabulary"
        lines = [f"{'':20} {'absolute':>10} {'relative':>10} {'allowed':>8} {'numbers':>10}"]
        for quantity, absolute, relative, compared, allowed in self.differences:
            lines.append(f"{quantity:20} {absolute:10.2e} {relative:10.2e} {allowed:8.0e} {compared:10,}")
        return "\n".join(lines)


def log_probabilities(outputs: np.ndarray, logits: bool) -> np.ndarray:
    """Returns the logarithms of probabilities or of the softmax of logits, float32, along the last axis."""
    outputs = np.asarray(outputs, np.float32)
    if logits:
        return np.asarray(jax.nn.log_softmax(outputs))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(outputs)


def of_language_model(model: LanguageModel, name: str = "jaxlm") -> Subject:
    """Returns a `LanguageModel` as a `Subject`."""
    graphdef, params = nnx.split(model)

    def predict(ids: np.ndarray) -> Predictions:
        result, carry = _run(graphdef, params, jnp.asarray(ids))
        states: dict[str, np.ndarray] = {}
        for n, (c, h) in enumerate(carry, start=1):
            states |= {f"h_{n}": np.asarray(h), f"c_{n}": np.asarray(c)}
        return Predictions(np.asarray(result), states)

    return Subject(name, model.config.vocab_size, predict)


@partial(jax.jit, static_argnums=0)
def _run(graphdef: nnx.GraphDef, params: nnx.State, ids: jax.Array) -> tuple[jax.Array, tuple[Carry, ...]]:
    logits, carry = nnx.merge(graphdef, params)(ids)
    return jax.nn.log_softmax(logits), carry


def step_subject(
    name: str,
    vocab_size: int,
    step: Callable[[np.ndarray, dict[str, np.ndarray]], Mapping[str, np.ndarray]],
    zeros: Mapping[str, np.ndarray],
    result: str,
    precision: str = "float32",
    batch_one: bool = False,
) -> Subject:
    """Returns a model that reads one word at a time as a `Subject`.

    Args:
      name: to show.
      vocab_size: of the model.
      step: from ids `[batch]` and the states to its outputs by their names.
      zeros: the zero states by their names, each `[1, hidden_size]`.
      result: name of the output `[batch, vocab_size]`: "probabilities" or "logits".
      precision: of the weights.
      batch_one: whether the model takes a batch of 1 only.
    """

    def read(ids: np.ndarray) -> Predictions:
        carry = {key: np.repeat(zero, len(ids), axis=0) for key, zero in zeros.items()}
        rows = []
        for column in ids.T:
            outputs = step(column, carry)
            carry = {key: outputs[key] for key in carry}
            rows.append(log_probabilities(outputs[result], result == "logits"))
        return Predictions(np.stack(rows, axis=1), carry)

    def predict(ids: np.ndarray) -> Predictions:
        if not batch_one:
            return read(ids)
        parts = [read(row[None]) for row in ids]
        states = {key: np.concatenate([part.states[key] for part in parts]) for key in zeros}
        return Predictions(np.concatenate([part.log_probabilities for part in parts]), states)

    return Subject(name, vocab_size, predict, precision=precision)


def compare(
    first: Subject, second: Subject, *, batch_size: int = BATCH_SIZE, time: int = TIME, seed: int = SEED
) -> Parity:
    """Compares log-probabilities and states on random ids, drawn evenly from the vocabulary.

    Args:
      first: a model.
      second: another; a vocabulary of another size counts as infinitely far.
      batch_size: sequences of random ids.
      time: length of each.
      seed: of the ids.

    Returns:
      The `Parity`: of log-probabilities, and of the states that both show.
    """
    names = (first.name, second.name)
    if first.vocab_size != second.vocab_size:
        return Parity(names, ())
    ids = _random_ids(first.vocab_size, max(first.first_id, second.first_id), batch_size, time, seed)
    ours, theirs = _predict_both(first, second, ids)
    tolerance = max(TOLERANCES[first.precision], TOLERANCES[second.precision])
    rows = [_difference("log-probabilities", ours.log_probabilities, theirs.log_probabilities, tolerance)]
    for key in ours.states:
        if key in theirs.states:
            rows.append(_difference(key, ours.states[key], theirs.states[key], tolerance))
    return Parity(names, tuple(rows))


def remembered(subject: Subject) -> Subject:
    """Returns a `Subject` that knows what `compare` asks of it by its defaults; the model may be gone by then.

    The other subject's first id may not be larger than this one's.
    """
    ids = _random_ids(subject.vocab_size, subject.first_id, BATCH_SIZE, TIME, SEED)
    known = {ids.tobytes(): subject.predict(ids)}
    return subject._replace(predict=lambda ids: known[ids.tobytes()])


def _random_ids(vocab_size: int, first_id: int, batch_size: int, time: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(first_id, vocab_size, (batch_size, time), np.int32)


def prove(first: Subject, second: Subject) -> Parity:
    """Compares two models and raises where they differ.

    Raises:
      InputError: they differ; the message holds the table.
    """
    parity = compare(first, second)
    if not parity.holds:
        raise InputError(f"The converted model differs from its source, so it is not written: {parity}")
    return parity


def text_losses(first: Subject, second: Subject, tokens: np.ndarray, max_tokens: int = 0) -> tuple[float, float, int]:
    """Computes the losses of a text through two models, in windows that start at the zero state.

    Args:
      first: a model.
      second: another.
      tokens: `[N]` ids.
      max_tokens: at most so many words, from the beginning; 0 is all.

    Returns:
      The two losses in nats per word, summed in double, and the number of words.
    """
    words = min(max_tokens or tokens.size, tokens.size - 1)
    sums, count = np.zeros(2), 0
    for start in range(0, words, WINDOW):
        window = tokens[start : min(start + WINDOW, words) + 1]
        ids, labels = window[None, :-1], window[1:]
        labels = labels[-1:] if first.last_only or second.last_only else labels
        for side, predictions in enumerate(_predict_both(first, second, ids)):
            sums[side] -= predictions.log_probabilities[0, np.arange(len(labels)), labels].sum(dtype=np.float64)
        count += len(labels)
    return *(sums / count), count


def perplexities(first: Subject, second: Subject, tokens: np.ndarray, max_tokens: int = 0) -> tuple[Difference, str]:
    """Compares the perplexities of a text; see `text_losses`.

    Returns:
      The `Difference` of the losses (the relative one is that of the perplexities), and a line for people.
    """
    ours, theirs, count = text_losses(first, second, tokens, max_tokens)
    allowed = max(TOLERANCES[first.precision], TOLERANCES[second.precision])
    row = Difference("loss of the text", abs(ours - theirs), abs(float(np.expm1(theirs - ours))), count, allowed)
    line = f"perplexity of {count:,} words: {first.name} {np.exp(ours):.4f}, {second.name} {np.exp(theirs):.4f}"
    return row, line


def _predict_both(first: Subject, second: Subject, ids: np.ndarray) -> tuple[Predictions, Predictions]:
    """Both models' predictions, of the last place only where one of them has no others."""
    ours, theirs = first.predict(ids), second.predict(ids)
    if first.last_only or second.last_only:
        ours = ours._replace(log_probabilities=ours.log_probabilities[:, -1:])
        theirs = theirs._replace(log_probabilities=theirs.log_probabilities[:, -1:])
    return ours, theirs


def _difference(quantity: str, ours: np.ndarray, theirs: np.ndarray, allowed: float) -> Difference:
    if ours.shape != theirs.shape:
        return Difference(f"{quantity} (shape)", float("inf"), float("inf"), 0, allowed)
    ours, theirs = np.maximum(np.asarray(ours, np.float32), LOWEST), np.maximum(np.asarray(theirs, np.float32), LOWEST)
    absolute = np.abs(ours - theirs)
    relative = absolute / np.maximum(np.maximum(np.abs(ours), np.abs(theirs)), 1e-6)
    return Difference(quantity, float(absolute.max()), float(relative.max()), absolute.size, allowed)
