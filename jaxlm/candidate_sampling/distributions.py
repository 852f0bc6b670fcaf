"""Distributions of the candidate samplers: each turns 64 random bits into a proposed id, accepted or not."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jax.typing import ArrayLike

from jaxlm.config_checks import require_integer
from jaxlm.errors import require

SEGMENTS_PER_OCTAVE = 16  # finer segments reject fewer proposals: 3 % at 16
GUIDE_BITS = 10  # every segment is heavier than 2**-10, so a cell of the guide has at most one boundary

Bits = tuple[jax.Array, jax.Array]  # two uint32 words per draw, each [num_draws]


def random_bits(key: jax.Array, block: ArrayLike, num_draws: int) -> Bits:
    """Returns two words for each of `num_draws` draws of a block: Threefry-2x32 of (draw, block).

    `jax.random.bits` would run the generator twice as often, because it keeps one word of each pair.
    """
    keypair = jax.random.bits(key, (2,), jnp.uint32)  # works for any kind of key
    counts = jnp.concatenate([jnp.arange(num_draws, dtype=jnp.uint32), jnp.full(num_draws, block, jnp.uint32)])
    first, second = threefry_2x32(keypair, counts).reshape(2, num_draws)
    return first, second


class Envelope(NamedTuple):
    """A piecewise constant bound on the log-uniform distribution over n = id + 1 in [1, range_max]."""

    guide: np.ndarray  # [2**GUIDE_BITS] int32, segment at the start of each cell
    lower: np.ndarray  # [segments + 1] uint32, cumulative mass before each segment, scaled to 2**32
    start: np.ndarray  # [segments] int32, first n of each segment
    log2_width: np.ndarray  # [segments] int32
    scale: np.ndarray  # [segments] float32, accept if the rest of the first word >> 8 is < scale * _log_ratio(n)
    acceptance: float  # probability that a proposal is accepted


def log_uniform_envelope(range_max: int) -> Envelope:
    """Splits n = id + 1 into segments whose sizes are powers of two, about 16 per octave.

    Within a segment n is proposed uniformly and accepted with probability log1p(1/n) / log1p(1/start).
    Rejection makes the distribution exact, and integers resolve the tail better than a float32 exp(u log V).
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
    height = np.log1p(1.0 / np.array(start))
    mass = height * 2.0 ** np.array(log2_width)
    bounds = np.concatenate([[0.0], np.round(np.cumsum(mass) / mass.sum() * 2.0**32)])
    cells = np.arange(2**GUIDE_BITS) * 2.0 ** (32 - GUIDE_BITS)
    return Envelope(
        np.searchsorted(bounds[1:], cells, side="right").astype(np.int32),
        bounds.clip(0, 2**32 - 1).astype(np.uint32),
        np.array(start, np.int32),
        np.array(log2_width, np.int32),
        np.where(np.array(log2_width) > 0, np.diff(bounds) / 256.0 / height, np.inf).astype(np.float32),
        min(1.0, math.log(range_max + 1) / mass.sum()),
    )


def propose_log_uniform(bits: Bits, range_max: int, envelope: Envelope) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[num_draws]` int32 and whether each is accepted `[num_draws]` bool."""
    first, second = bits
    lower = jnp.asarray(envelope.lower)
    segment = jnp.asarray(envelope.guide)[first >> (32 - GUIDE_BITS)]
    last = envelope.start.size - 1
    segment = jnp.minimum(segment + (first >= lower[segment + 1]), last)
    # two shifts, since a shift by all 32 bits is undefined
    shift = (31 - jnp.asarray(envelope.log2_width)[segment]).astype(jnp.uint32)
    n = jnp.asarray(envelope.start)[segment] + ((second >> 1) >> shift).astype(jnp.int32)
    rest = ((first - lower[segment]) >> 8).astype(jnp.float32)  # uniform within the segment
    accepted = rest < jnp.asarray(envelope.scale)[segment] * _log_ratio(n.astype(jnp.float32))
    return n - 1, accepted & (n <= range_max)


def _log_ratio(n: jax.Array) -> jax.Array:
    """log((n + 1) / n) = 2 artanh(1 / (2n + 1)) by its series: right to the last bit for n > 31, without a log."""
    z = 1.0 / (2.0 * n + 1.0)
    square = z * z
    return 2.0 * z * (1.0 + square * (1.0 / 3.0 + square / 5.0))


def multiply_high(bits: Bits, n: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns the integer part of n * u in [0, n), int32, and 32 bits of its fraction, uint32.

    u is the 64-bit fraction made of the two words, so the probability of each integer is right to n / 2**64.
    """
    n = jnp.asarray(n, jnp.uint32)
    integer, fraction = _multiply(bits[0], n)
    carried, _ = _multiply(bits[1], n)
    fraction += carried
    return (integer + (fraction < carried)).astype(jnp.int32), fraction


def _multiply(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the high and the low word of a 32 x 32 bit product."""
    half = jnp.uint32(0xFFFF)
    low = (a & half) * (b & half)
    middle = (a >> 16) * (b & half) + (low >> 16)
    cross = (a & half) * (b >> 16) + (middle & half)
    return (a >> 16) * (b >> 16) + (middle >> 16) + (cross >> 16), a * b


class UnigramTable(NamedTuple):
    """A distribution as an alias table: a draw takes two lookups at any size."""

    probability: jax.Array  # [V] float32
    threshold: jax.Array  # [V] uint32, fraction of a column that belongs to its own id, times 2**32
    alias: jax.Array  # [V] int32, id that the rest of the column belongs to


def unigram_table(unigrams: ArrayLike, distortion: float = 1.0, num_reserved_ids: int = 0) -> UnigramTable:
    """Makes the table of `fixed_unigram_candidate_sampler`, P(k) = unigrams[k]**distortion / sum.

    Args:
      unigrams: `[V - num_reserved_ids]` counts or probabilities of at least 0, unnormalised, concrete.
      distortion: finite power they are raised to; 0 makes them equal, 0.75 is word2vec's.
      num_reserved_ids: number of ids before them, with probability 0.

    Returns:
      A `UnigramTable`, 12 bytes per class. It is a pytree: pass it into `jit` rather than closing over it.

    Raises:
      InputError: the unigrams are not a vector, negative, not finite, or all 0, by themselves or raised to the power;
        or `num_reserved_ids` is not an integer of at least 0.

    References:
      `tf.random.fixed_unigram_candidate_sampler`; Walker 1977, https://doi.org/10.1145/355744.355749;
      built in sorted sweeps as in Huebschle-Schneider and Sanders 2019, https://arxiv.org/abs/1903.00227.
    """
    weights = np.asarray(unigrams, np.float64)
    require(weights.ndim == 1, "unigrams", "a vector", f"shape {weights.shape}")
    valid = (weights >= 0).all() and 0 < weights.sum() < np.inf
    require(bool(valid), "unigrams", "finite values of at least 0, not all 0", weights[:8].tolist())
    require_integer("num_reserved_ids", num_reserved_ids, 0)
    with np.errstate(all="ignore"):
        powers = (weights / weights.max()) ** distortion  # which cannot overflow for a distortion of at least 0
    finite = math.isfinite(distortion) and bool(np.isfinite(powers.sum()))
    require(finite, "distortion", "a power that keeps the unigrams finite", distortion)
    weights = np.concatenate([np.zeros(num_reserved_ids), powers])
    probability = weights / weights.sum()
    columns = probability * weights.size  # 1 on average
    light, heavy = np.flatnonzero(columns <= 1.0), np.flatnonzero(columns > 1.0)
    own, alias = columns.clip(max=1.0), np.arange(weights.size)
    if heavy.size:
        # light columns are filled in order from the heavy ones in order, so prefix sums of what is missing
        # and of what is over tell which heavy column fills which light one
        missing, over = np.cumsum(1.0 - columns[light]), np.cumsum(columns[heavy] - 1.0)
        giver = np.searchsorted(over, np.concatenate([[0.0], missing[:-1]]), side="right")
        alias[light] = heavy[giver.clip(max=heavy.size - 1)]
        # a heavy column that gave away more than its excess is filled by the next one; rounding can empty the last one
        emptied = np.searchsorted(missing, over, side="right")
        given_before = np.concatenate([[0.0], missing])[emptied]
        short = np.flatnonzero(((emptied < light.size) & (given_before < over))[:-1])
        own[heavy[short]] = 1.0 + over[short] - missing[emptied[short]]
        alias[heavy[short]] = heavy[short + 1]
    threshold = np.round(own.clip(0.0, 1.0) * 2.0**32)
    alias = np.where(threshold == 2.0**32, np.arange(weights.size), alias)  # full to the last bit of a word
    with jax.ensure_compile_time_eval():  # concrete also within `jax.eval_shape`, as a mesh needs it
        return UnigramTable(
            jnp.asarray(probability, jnp.float32),
            jnp.asarray(threshold.clip(max=2.0**32 - 1), jnp.uint32),
            jnp.asarray(alias, jnp.int32),
        )


def propose_unigram(bits: Bits, table: UnigramTable) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[num_draws]` int32; all are accepted."""
    column, fraction = multiply_high(bits, table.alias.size)
    ids = jnp.where(fraction < table.threshold[column], column, table.alias[column])
    return ids, jnp.ones(ids.shape, bool)


class LearnedUnigrams(NamedTuple):
    """Counts of the classes seen so far, each plus one, as exact integers in a binary tree of sums."""

    sums: jax.Array  # [2 * size] int32; node n is the sum of 2n and 2n + 1, leaf size + k the count of k

    def count_of(self, ids: jax.Array) -> jax.Array:
        """Returns the counts of ids, int32."""
        return self.sums[ids + self.sums.size // 2]

    @property
    def total(self) -> jax.Array:
        """The sum of all counts, int32."""
        return self.sums[1]


def learned_unigrams(range_max: int) -> LearnedUnigrams:
    """Makes the first state of `learned_unigram_candidate_sampler`: a count of 1 for each class, as in TensorFlow."""
    size = 2 ** (range_max - 1).bit_length()
    levels = [(np.arange(size) < range_max).astype(np.int32)]
    while levels[-1].size > 1:
        levels.append(levels[-1].reshape(-1, 2).sum(axis=1, dtype=np.int32))
    return LearnedUnigrams(jnp.asarray(np.concatenate([np.zeros(1, np.int32), *reversed(levels)])))


def add_classes(state: LearnedUnigrams, classes: jax.Array, range_max: int) -> LearnedUnigrams:
    """Counts each occurrence of classes `[...]` in [0, range_max), up to a total of 2**31 - 1, as in TensorFlow."""
    depth = (state.sums.size // 2).bit_length() - 1
    classes = classes.reshape(-1)
    valid = (classes >= 0) & (classes < range_max)
    counted = valid & (jnp.cumsum(valid, dtype=jnp.int32) <= jnp.iinfo(jnp.int32).max - state.total)
    nodes = (jnp.where(valid, classes, 0) + state.sums.size // 2)[None, :] >> jnp.arange(depth + 1)[:, None]
    return LearnedUnigrams(state.sums.at[nodes].add(counted.astype(jnp.int32)[None, :]))


def propose_learned(bits: Bits, state: LearnedUnigrams) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[num_draws]` int32; all are accepted."""
    size = state.sums.size // 2
    rest, _ = multiply_high(bits, state.total)

    def descend(_: int, position: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node, rest = position
        left = state.sums[2 * node]
        right = rest >= left
        return 2 * node + right, jnp.where(right, rest - left, rest)

    node, _ = jax.lax.fori_loop(0, size.bit_length() - 1, descend, (jnp.ones_like(rest), rest))
    return node - size, jnp.ones(node.shape, bool)
