"""Draws of distinct ids in fixed shapes, with the number of draws it took."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.candidate_sampling.distributions import Bits, random_bits

FIRST_SEEN_SIZE = 2**17  # of the table in which first occurrences are looked up; its 0.5 MB stay in the cache

Propose = Callable[[Bits], tuple[jax.Array, jax.Array]]
DrawState = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # candidates, count, num_tries, number of blocks


class Block(NamedTuple):
    """The number of draws at a time."""

    num_draws: int
    suffices: bool  # whether one block fills the sample, except in an 8-sigma event


def zipf_block(num_sampled: int, unique: bool, range_max: int) -> Block:
    """Returns the block for Zipf's law, a guess for a distribution that is known only at run time."""
    n = np.unique(np.geomspace(1, range_max + 1, 200).astype(int))
    start, count = n[:-1], np.diff(n)
    probability = np.log1p(count / start) / count / math.log(range_max + 1)
    return block_of(num_sampled, unique, probability, count)._replace(suffices=False)


def block_of(
    num_sampled: int, unique: bool, probability: np.ndarray, count: np.ndarray, accepted: float = 1.0
) -> Block:
    """Returns a static number of proposals that suffices except in an 8-sigma event, capped near S = V.

    `probability` is that of each id in a band, `count` the number of ids in the band, and `accepted` the
    fraction of proposals that are accepted.
    """
    draws, suffices = float(num_sampled), not unique
    while not suffices and draws < 4 * num_sampled:
        missing = np.exp(-draws * probability)
        distinct = (count * (1.0 - missing)).sum()
        suffices = bool(distinct - 8.0 * math.sqrt((count * missing * (1.0 - missing)).sum()) >= num_sampled)
        draws *= 1.0 if suffices else 1.02
    proposals = draws / accepted + 8.0 * math.sqrt(draws * (1 / accepted - 1))
    return Block(128 * math.ceil(proposals / 128), suffices)  # XLA:CPU takes three times as long for odd lengths


def draw(
    key: jax.Array, num_sampled: int, unique: bool, range_max: int, block: Block, propose: Propose
) -> tuple[jax.Array, jax.Array]:
    """Draws blocks until the sample is full: returns the candidates `[num_sampled]` and num_tries, int32.

    One block nearly always suffices. Continuing the same sequence, rather than starting again, keeps the
    distribution of num_tries exact.
    """

    def draw_block(state: DrawState, carried: bool = True) -> DrawState:
        candidates, count, num_tries, index = state
        ids, accepted = propose(random_bits(key, index, block.num_draws))
        new = accepted
        if unique:
            before = candidates if carried else candidates[:0]
            sequence = jnp.concatenate([before, ids])
            present = jnp.concatenate([before < range_max, accepted])
            new = first_occurrences(sequence, present, range_max)[before.size :]
        rank = count + jnp.cumsum(new, dtype=jnp.int32)  # number found so far, including this draw
        slot = jnp.where(new, rank - 1, num_sampled)
        candidates = candidates.at[slot].set(ids, mode="drop")
        num_tries += jnp.sum(accepted & (rank - new < num_sampled), dtype=jnp.int32)
        return candidates, jnp.minimum(rank[-1], num_sampled), num_tries, index + 1

    zero = jnp.int32(0)
    empty = jnp.full(num_sampled, range_max, jnp.int32)  # range_max marks a free slot
    state = draw_block((empty, zero, zero, zero), carried=False)
    until_full = partial(jax.lax.while_loop, lambda state: state[1] < num_sampled, draw_block)
    if block.suffices:  # on an accelerator a loop waits for the host; a second block takes less time
        state = jax.lax.platform_dependent(state, cpu=until_full, default=draw_block)
    else:
        state = until_full(state)
    return state[0], state[2]


def first_occurrences(ids: jax.Array, present: jax.Array, range_max: int) -> jax.Array:
    """Marks the first occurrence of each id among those present: `[N]` int32, `[N]` bool -> `[N]` bool."""
    by_hashing = partial(first_occurrences_by_hashing, range_max=range_max)
    return jax.lax.platform_dependent(ids, present, cpu=by_hashing, default=first_occurrences_by_sorting)


def first_occurrences_by_sorting(ids: jax.Array, present: jax.Array) -> jax.Array:
    """Computes `first_occurrences` with one sort, without the round trips of a loop to the host of an accelerator."""
    ids = jnp.where(present, ids, -1)
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    changes = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros(ids.size, bool).at[order].set(changes & (ordered >= 0))


def first_occurrences_by_hashing(ids: jax.Array, present: jax.Array, range_max: int) -> jax.Array:
    """Computes `first_occurrences` without a sort.

    Each id writes its position to a bucket, and the lowest one stays. If ids share a bucket, those that lost it to
    another id try again with another hash.
    """
    position = jnp.arange(ids.size, dtype=jnp.int32)
    size = min(range_max, FIRST_SEEN_SIZE)

    def settle(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, unsettled, turn = state
        bucket = ids
        if range_max > size:  # odd multipliers mix upwards; at first the frequent ids have their own buckets
            mixed = (ids.astype(jnp.uint32) ^ (turn * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
            bucket = jnp.where(turn == 0, ids % size, (mixed >> 15).astype(jnp.int32))
        bucket = jnp.where(unsettled, bucket, size)
        lowest = jnp.full(size, ids.size, jnp.int32).at[bucket].min(position, mode="drop")
        winner = lowest.at[bucket].get(mode="fill", fill_value=ids.size)
        same = ids.at[winner].get(mode="clip") == ids
        return first | (winner == position), unsettled & ~same, turn + 1

    state = settle((jnp.zeros(ids.size, bool), present, jnp.uint32(0)))
    if range_max > size:
        state = jax.lax.while_loop(lambda state: state[1].any(), settle, state)
    return state[0]
