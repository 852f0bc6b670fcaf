"""Candidate samplers with the meaning of TensorFlow's, as pure functions of a key, inside `jit`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SEGMENTS_PER_OCTAVE = 16  # finer segments reject fewer proposals: 3 % at 16


class SampledValues(NamedTuple):
    """What a candidate sampler returns, in TensorFlow's order."""

    sampled_candidates: jax.Array  # [num_sampled] int32
    true_expected_count: jax.Array  # [N, num_true] float32
    sampled_expected_count: jax.Array  # [num_sampled] float32


DrawState = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # candidates, count, num_tries, block


class Proposals(NamedTuple):
    """A piecewise constant envelope of the log-uniform law over n = id + 1 in [1, range_max]."""

    cumulative: np.ndarray  # [segments - 1] uint32, scaled to 2**32
    start: np.ndarray  # [segments] int32, first n of the segment
    log2_width: np.ndarray  # [segments] int32
    acceptance: float  # probability that a proposal is accepted


def log_uniform_candidate_sampler(
    key: jax.Array, true_classes: jax.Array, num_sampled: int, unique: bool, range_max: int
) -> SampledValues:
    """Samples classes from the log-uniform (Zipfian) law, exactly.

    P(k) = log((k + 2) / (k + 1)) / log(range_max + 1), for ids sorted by decreasing frequency.

    Args:
      key: a `jax.random.key`; the result is a pure function of it.
      true_classes: `[N, num_true]` integer ids.
      num_sampled: number of classes to draw, S.
      unique: draw until S distinct ids are found (rejecting repeats), else S draws with replacement.
      range_max: number of classes V, up to 2**26.

    Returns:
      `SampledValues`: candidates `[S]` and the expected counts of true classes `[N, num_true]` and
      candidates `[S]`. With `unique`, the expected count is -expm1(num_tries * log1p(-P)), where
      num_tries is the number of draws it took; P * S where none was rejected or without `unique`.

    Raises:
      ValueError: a shape does not fit, or `num_sampled > range_max` with `unique`.

    References:
      `tf.random.log_uniform_candidate_sampler`; `ExpectedCountHelper` in its kernel.
    """
    if true_classes.ndim != 2:
        raise ValueError(f"Invalid `true_classes`: expected shape [N, num_true]. Received: {true_classes.shape}.")
    if not 1 <= range_max <= 2**26:
        raise ValueError(f"Invalid `range_max`: expected 1 to 2**26 classes. Received: {range_max}.")
    if num_sampled < 1 or (unique and num_sampled > range_max):
        raise ValueError(
            f"Invalid `num_sampled`: expected at least 1, and at most range_max={range_max} where unique={unique}."
            f" Received: {num_sampled}."
        )
    candidates, num_tries = _draw(key, num_sampled, unique, range_max)

    def expected_count(ids: jax.Array) -> jax.Array:
        probability = log_uniform_probability(ids, range_max)
        repeated = -jnp.expm1(num_tries.astype(jnp.float32) * jnp.log1p(-probability))
        return jnp.where(num_tries == num_sampled, probability * num_sampled, repeated)

    return SampledValues(candidates, expected_count(true_classes), expected_count(candidates))


def log_uniform_probability(ids: jax.Array, range_max: int) -> jax.Array:
    """P(k) = log((k + 2) / (k + 1)) / log(range_max + 1), float32, of the shape of `ids`."""
    return jnp.log1p(1.0 / (ids.astype(jnp.float32) + 1.0)) / np.float32(math.log(range_max + 1))


def _envelope(range_max: int) -> Proposals:
    """Splits n = id + 1 into segments of a power of two of ids, about 16 an octave.

    Within a segment n is proposed uniformly and accepted with log1p(1/n) / log1p(1/start): rejection
    makes the law exact, and integers carry more bits to the tail than a float32 exp(u log V) can.
    """
    start: list[int] = []
    log2_width: list[int] = []
    octave = 0
    step = int(math.log2(SEGMENTS_PER_OCTAVE))
    while 2**octave <= range_max:
        width = max(octave - step, 0)
        first = range(2**octave, min(2 ** (octave + 1), range_max + 1), 2**width)
        start += first
        log2_width += [width] * len(first)
        octave += 1
    mass = np.log1p(1.0 / np.array(start)) * 2.0 ** np.array(log2_width)
    cumulative = np.cumsum(mass) / mass.sum()
    return Proposals(
        np.round(cumulative[:-1] * 2.0**32).clip(0, 2**32 - 1).astype(np.uint32),
        np.array(start, np.int32),
        np.array(log2_width, np.int32),
        min(1.0, math.log(range_max + 1) / mass.sum()),
    )


def _propose(key: jax.Array, num_draws: int, range_max: int, proposals: Proposals) -> tuple[jax.Array, jax.Array]:
    """Returns proposed ids `[num_draws]` int32 and whether each is accepted `[num_draws]` bool."""
    segment_bits, offset_bits, accept_bits = jax.random.bits(key, (3, num_draws), jnp.uint32)
    segment = jnp.searchsorted(jnp.asarray(proposals.cumulative), segment_bits, side="right")
    start = jnp.asarray(proposals.start)[segment]
    # two shifts, since a shift by all 32 bits is undefined
    shift = (31 - jnp.asarray(proposals.log2_width)[segment]).astype(jnp.uint32)
    n = start + ((offset_bits >> 1) >> shift).astype(jnp.int32)
    uniform = (accept_bits >> 8).astype(jnp.float32) * np.float32(2**-24)
    ratio = jnp.log1p(1.0 / n.astype(jnp.float32)) / jnp.log1p(1.0 / start.astype(jnp.float32))
    return n - 1, (uniform < ratio) & (n <= range_max)


def _num_draws(num_sampled: int, unique: bool, range_max: int, proposals: Proposals) -> int:
    """A static number of proposals that holds the sample but for an 8-sigma event, capped near S = V."""
    if not unique:
        mean = num_sampled / proposals.acceptance
        return int(mean + 8.0 * math.sqrt(mean) + 8)
    count = np.minimum(2.0**proposals.log2_width, range_max + 1 - proposals.start)
    probability = np.log1p(count / proposals.start) / count / math.log(range_max + 1)
    draws = float(num_sampled)
    while draws < 4 * num_sampled:
        missing = np.exp(-draws * probability)
        distinct = (count * (1.0 - missing)).sum()
        if distinct - 8.0 * math.sqrt((count * missing * (1.0 - missing)).sum()) >= num_sampled:
            break
        draws *= 1.02
    return int(draws / proposals.acceptance + 8.0 * math.sqrt(draws * (1 / proposals.acceptance - 1)) + 8)


def _draw(key: jax.Array, num_sampled: int, unique: bool, range_max: int) -> tuple[jax.Array, jax.Array]:
    """Draws blocks until the sample is full, keeping the sequence: `([num_sampled], num_tries)`, int32.

    One block nearly always suffices. Going on with the carried sequence, rather than drawing it
    anew, is what leaves the law of num_tries unbent.
    """
    proposals = _envelope(range_max)
    num_draws = _num_draws(num_sampled, unique, range_max, proposals)

    def is_short(state: DrawState) -> jax.Array:
        return state[1] < num_sampled

    def draw_block(state: DrawState) -> DrawState:
        candidates, count, num_tries, block = state
        ids, accepted = _propose(jax.random.fold_in(key, block), num_draws, range_max, proposals)
        new = accepted
        if unique:
            sequence = jnp.concatenate([candidates, jnp.where(accepted, ids, range_max)])
            new = accepted & _is_first(sequence)[num_sampled:]
        rank = count + jnp.cumsum(new, dtype=jnp.int32)  # how many are found, this draw included
        slot = jnp.where(new, rank - 1, num_sampled)
        candidates = candidates.at[slot].set(ids, mode="drop")
        num_tries += jnp.sum(accepted & (rank - new < num_sampled), dtype=jnp.int32)
        return candidates, jnp.minimum(rank[-1], num_sampled), num_tries, block + 1

    zero = jnp.int32(0)
    empty = jnp.full(num_sampled, range_max, jnp.int32)  # range_max marks a free place
    candidates, _, num_tries, _ = jax.lax.while_loop(is_short, draw_block, (empty, zero, zero, zero))
    return candidates, num_tries


def _is_first(ids: jax.Array) -> jax.Array:
    """Marks the first occurrence of each id: `[N]` int32 -> `[N]` bool."""
    position = jnp.arange(ids.size, dtype=jnp.int32)
    ordered, position = jax.lax.sort((ids, position), num_keys=1, is_stable=True)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros(ids.size, bool).at[position].set(first, unique_indices=True)
