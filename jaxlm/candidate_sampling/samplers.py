"""TensorFlow's candidate samplers as pure functions of a key, for use inside `jit`."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.candidate_sampling.distributions import (
    Bits,
    LearnedUnigrams,
    UnigramTable,
    add_classes,
    log_uniform_envelope,
    multiply_high,
    propose_learned,
    propose_log_uniform,
    propose_unigram,
)
from jaxlm.candidate_sampling.unique import block_of, draw, zipf_block
from jaxlm.errors import require
from jaxlm.row_updates import take_rows
from jaxlm.token_ids import as_int32

Classes = jax.Array | ArrayLike  # [N, num_true] integer


class SampledValues(NamedTuple):
    """The result of a candidate sampler, in TensorFlow's order."""

    sampled_candidates: jax.Array  # [num_sampled] int32
    true_expected_count: jax.Array  # [N, num_true] float32
    sampled_expected_count: jax.Array  # [num_sampled] float32


def log_uniform_candidate_sampler(
    key: jax.Array, true_classes: Classes, num_sampled: int, unique: bool, range_max: int
) -> SampledValues:
    """Samples classes from the log-uniform (Zipfian) distribution, exactly.

    P(k) = log((k + 2) / (k + 1)) / log(range_max + 1), for ids sorted by decreasing frequency.

    Args:
      key: a `jax.random.key`; the result is a pure function of it.
      true_classes: `[N, num_true]` integer ids.
      num_sampled: number of classes to draw, S.
      unique: whether to draw until S distinct ids are found, rejecting repeats, or S times with replacement.
      range_max: number of classes V, up to 2**26.

    Returns:
      `SampledValues`: candidates `[S]` and the expected counts of true classes `[N, num_true]` and
      candidates `[S]`. With `unique`, the expected count is -expm1(num_tries * log1p(-P)), where
      num_tries is the number of draws it took; P * S if none was rejected, or without `unique`. A traced
      class that is not in [0, V) has the expected count NaN.

    Raises:
      InputError: a shape does not fit, `num_sampled > range_max` with `unique`, or a concrete id is
        out of range.

    References:
      `tf.random.log_uniform_candidate_sampler`; `ExpectedCountHelper` in its kernel.
    """
    true_classes = _checked(true_classes, num_sampled, unique, range_max)
    return _log_uniform(key, true_classes, num_sampled, unique, range_max)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _log_uniform(
    key: jax.Array, true_classes: jax.Array, num_sampled: int, unique: bool, range_max: int
) -> SampledValues:
    envelope = log_uniform_envelope(range_max)
    count = np.minimum(2.0**envelope.log2_width, range_max + 1 - envelope.start)
    probability_of = np.log1p(count / envelope.start) / count / math.log(range_max + 1)
    block = block_of(num_sampled, unique, probability_of, count, envelope.acceptance)
    propose = partial(propose_log_uniform, range_max=range_max, envelope=envelope)
    candidates, num_tries = draw(key, num_sampled, unique, range_max, block, propose)
    probability = partial(log_uniform_probability, range_max=range_max)
    return _with_counts(candidates, num_tries, true_classes, range_max, probability)


def log_uniform_probability(ids: jax.Array, range_max: int) -> jax.Array:
    """P(k) = log((k + 2) / (k + 1)) / log(range_max + 1), float32, of the shape of `ids`."""
    return jnp.log1p(1.0 / (ids.astype(jnp.float32) + 1.0)) / np.float32(math.log(range_max + 1))


def uniform_candidate_sampler(
    key: jax.Array, true_classes: Classes, num_sampled: int, unique: bool, range_max: int
) -> SampledValues:
    """Samples classes uniformly, P(k) = 1 / range_max; otherwise like `log_uniform_candidate_sampler`.

    References:
      `tf.random.uniform_candidate_sampler`.
    """
    true_classes = _checked(true_classes, num_sampled, unique, range_max)
    return _uniform(key, true_classes, num_sampled, unique, range_max)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _uniform(key: jax.Array, true_classes: jax.Array, num_sampled: int, unique: bool, range_max: int) -> SampledValues:
    block = block_of(num_sampled, unique, np.array([1.0 / range_max]), np.array([range_max]))

    def propose(bits: Bits) -> tuple[jax.Array, jax.Array]:
        ids = multiply_high(bits, range_max)[0]
        return ids, jnp.ones(ids.shape, bool)

    candidates, num_tries = draw(key, num_sampled, unique, range_max, block, propose)
    probability = np.float32(1 / range_max)
    return _with_counts(candidates, num_tries, true_classes, range_max, lambda ids: jnp.full(ids.shape, probability))


def fixed_unigram_candidate_sampler(
    key: jax.Array,
    true_classes: Classes,
    num_sampled: int,
    unique: bool,
    range_max: int,
    unigrams: UnigramTable,
) -> SampledValues:
    """Samples classes by given weights; otherwise like `log_uniform_candidate_sampler`.

    Args:
      key, true_classes, num_sampled, unique, range_max: as there. With `unique`, at least
        `num_sampled` classes must have a probability above 0. This is checked outside `jit`; inside it, the
        sampler would never return.
      unigrams: `unigram_table(counts, distortion, num_reserved_ids)`, made once, outside `jit`.

    References:
      `tf.random.fixed_unigram_candidate_sampler`.
    """
    true_classes = _checked(true_classes, num_sampled, unique, range_max)
    num_classes = unigrams.probability.size
    require(num_classes == range_max, "unigrams", f"a table of range_max={range_max} classes", num_classes)
    if unique and not isinstance(unigrams.probability, jax.core.Tracer):
        possible = int(np.count_nonzero(unigrams.probability))
        expected = f"at most {possible}, the number of classes with a probability above 0, since unique=True"
        require(num_sampled <= possible, "num_sampled", expected, num_sampled)
    return _fixed_unigram(key, true_classes, num_sampled, unique, unigrams)


@partial(jax.jit, static_argnums=(2, 3))
def _fixed_unigram(
    key: jax.Array, true_classes: jax.Array, num_sampled: int, unique: bool, unigrams: UnigramTable
) -> SampledValues:
    range_max = unigrams.probability.size
    propose = partial(propose_unigram, table=unigrams)
    block = zipf_block(num_sampled, unique, range_max)
    candidates, num_tries = draw(key, num_sampled, unique, range_max, block, propose)
    probability = partial(take_rows, unigrams.probability)
    return _with_counts(candidates, num_tries, true_classes, range_max, probability)


def learned_unigram_candidate_sampler(
    key: jax.Array,
    true_classes: Classes,
    num_sampled: int,
    unique: bool,
    range_max: int,
    state: LearnedUnigrams,
) -> tuple[SampledValues, LearnedUnigrams]:
    """Samples classes by their counts as true classes so far, plus one.

    Otherwise like `log_uniform_candidate_sampler`.

    Args:
      key, true_classes, num_sampled, unique, range_max: as there.
      state: `learned_unigrams(range_max)` at first, then the state that the last call returned.

    Returns:
      `SampledValues` for the given state, and the state with these true classes counted.

    References:
      `tf.random.learned_unigram_candidate_sampler`, which hides its state in the op.
    """
    true_classes = _checked(true_classes, num_sampled, unique, range_max)
    fits = state.sums.shape == (2 * 2 ** (range_max - 1).bit_length(),)
    require(fits, "state", f"learned_unigrams({range_max})", f"sums of shape {state.sums.shape}")
    return _learned_unigram(key, true_classes, num_sampled, unique, range_max, state)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _learned_unigram(
    key: jax.Array, true_classes: jax.Array, num_sampled: int, unique: bool, range_max: int, state: LearnedUnigrams
) -> tuple[SampledValues, LearnedUnigrams]:
    block = zipf_block(num_sampled, unique, range_max)
    propose = partial(propose_learned, state=state)
    candidates, num_tries = draw(key, num_sampled, unique, range_max, block, propose)

    def probability(ids: jax.Array) -> jax.Array:
        return state.count_of(ids).astype(jnp.float32) / state.total.astype(jnp.float32)

    values = _with_counts(candidates, num_tries, true_classes, range_max, probability)
    return values, add_classes(state, true_classes, range_max)


def all_candidate_sampler(
    key: jax.Array | None, true_classes: Classes, num_sampled: int, unique: bool, range_max: int
) -> SampledValues:
    """Returns every class once, with an expected count of 1, which makes a sampled loss exact, for tests.

    Args:
      key: not used.
      true_classes: `[N, num_true]` integer ids.
      num_sampled, range_max: number of classes, both the same.
      unique: not used.

    Raises:
      InputError: `num_sampled` is not `range_max`, or a shape or a concrete id does not fit.

    References:
      `tf.random.all_candidate_sampler`.
    """
    true_classes = _checked(true_classes, num_sampled, unique, range_max)
    require(num_sampled == range_max, "num_sampled", f"range_max={range_max}, all classes", num_sampled)
    candidates = jnp.arange(range_max, dtype=jnp.int32)
    return SampledValues(candidates, jnp.ones(true_classes.shape, jnp.float32), jnp.ones(range_max, jnp.float32))


def check_classes(name: str, ids: jax.Array, num_classes: int) -> None:
    """Raises `InputError` outside `jit` if integer ids are not in [0, num_classes)."""
    if ids.size and not isinstance(ids, jax.core.Tracer):
        low, high = int(np.asarray(ids).min()), int(np.asarray(ids).max())
        require(low >= 0 and high < num_classes, name, f"ids in [0, {num_classes})", f"{low} to {high}")


def _checked(true_classes: Classes, num_sampled: int, unique: bool, range_max: int) -> jax.Array:
    true_classes = jnp.asarray(as_int32("true_classes", true_classes))
    require(true_classes.ndim == 2, "true_classes", "shape [N, num_true]", true_classes.shape)
    require(1 <= range_max <= 2**26, "range_max", "1 to 2**26 classes", range_max)
    require(num_sampled >= 1, "num_sampled", "at least 1", num_sampled)
    fits = not unique or num_sampled <= range_max
    require(fits, "num_sampled", f"at most range_max={range_max}, since unique=True", num_sampled)
    check_classes("true_classes", true_classes, range_max)
    return true_classes


def _with_counts(
    candidates: jax.Array,
    num_tries: jax.Array,
    true_classes: jax.Array,
    range_max: int,
    probability: Callable[[jax.Array], jax.Array],
) -> SampledValues:
    """Adds the expected counts, computed from the probabilities and the number of draws; NaN for an invalid class."""
    num_sampled = candidates.size

    def expected_count(ids: jax.Array) -> jax.Array:
        p = probability(ids)
        repeated = -jnp.expm1(num_tries.astype(jnp.float32) * jnp.log1p(-p))
        return jnp.where(num_tries == num_sampled, p * num_sampled, repeated)

    valid = (true_classes >= 0) & (true_classes < range_max)
    true_count = jnp.where(valid, expected_count(true_classes), jnp.nan)
    return SampledValues(candidates, true_count, expected_count(candidates))
