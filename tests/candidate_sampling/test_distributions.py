"""The parts of the distributions, number by number: random words, the alias table, the tree of counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from jaxlm.candidate_sampling.distributions import (
    add_classes,
    learned_unigrams,
    multiply_high,
    propose_learned,
    random_bits,
    unigram_table,
)
from jaxlm.errors import InputError


@pytest.mark.parametrize("block", [0, 3])
def test_random_bits_are_those_of_jaxs_threefry(block):
    key = jax.random.key(5)
    keypair = jax.random.bits(key, (2,), jnp.uint32)
    counts = jnp.concatenate([jnp.arange(7, dtype=jnp.uint32), jnp.full(7, block, jnp.uint32)])
    np.testing.assert_array_equal(np.concatenate(random_bits(key, block, 7)), threefry_2x32(keypair, counts))


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 2), min_size=1, max_size=4), st.integers(1, 2**31 - 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_multiply_high_is_the_product_of_big_integers(words, n):
    high, low = (np.array(word, np.uint32) for word in zip(*words, strict=True))
    integer, fraction = multiply_high((jnp.asarray(high), jnp.asarray(low)), n)
    for i, (a, b) in enumerate(words):
        product = n * (a * 2**32 + b)
        assert (int(integer[i]), int(fraction[i])) == (product >> 64, product >> 32 & 2**32 - 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 1.0, 3.0, 1e6]), min_size=1, max_size=40).filter(any),
    st.integers(0, 3),
)
@example([float(n) for n in range(17, 0, -1)], 0)  # a heavy column ends with a light one, and the sums are rounded
def test_the_alias_table_holds_the_distribution(weights, num_reserved_ids):
    table = unigram_table(weights, num_reserved_ids=num_reserved_ids)
    size = len(weights) + num_reserved_ids
    own = np.asarray(table.threshold, np.float64) / 2**32
    drawn = own.copy()
    np.add.at(drawn, np.asarray(table.alias), 1 - own)
    expected = np.concatenate([np.zeros(num_reserved_ids), weights]) / sum(weights)
    np.testing.assert_allclose(drawn / size, expected, atol=2**-31)
    np.testing.assert_allclose(table.probability, expected, rtol=1e-6)
    assert (drawn[expected == 0] == 0).all()  # what has no weight is never drawn


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [np.nan], [np.inf, 1.0], [[1.0]]])
def test_weights_that_are_not_a_distribution_raise(weights):
    with pytest.raises(InputError, match="unigrams"):
        unigram_table(weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [("distortion", -1.0), ("distortion", np.nan), ("distortion", np.inf)]
    + [("num_reserved_ids", -1), ("num_reserved_ids", 2.5)],
)
def test_settings_that_give_no_distribution_raise(name, value):
    with pytest.raises(InputError, match=name):
        unigram_table([3.0, 0.0, 1.0], **{name: value})


def test_a_high_power_of_counts_does_not_overflow():
    np.testing.assert_allclose(unigram_table([1e6, 1e3], distortion=100.0).probability, [1.0, 0.0], atol=1e-30)


@pytest.mark.parametrize("range_max", [1, 2, 5, 64, 65])
def test_tree_counts_and_finds_each_class(range_max):
    rng = np.random.default_rng(range_max)
    classes = rng.integers(0, range_max, (30, 2))
    invalid = np.array([[-1, range_max], [range_max + 1, 10**6]])
    state = add_classes(learned_unigrams(range_max), jnp.asarray(np.concatenate([classes, invalid])), range_max)
    counts = 1 + np.bincount(classes.ravel(), minlength=range_max)
    np.testing.assert_array_equal(state.count_of(jnp.arange(range_max)), counts)
    assert int(state.total) == counts.sum()
    # the n-th of all counts belongs to the class whose stretch it lies in
    total = int(state.total)
    middle = [(2 * n + 1) * 2**63 // total for n in range(total)]
    bits = tuple(jnp.asarray([m >> shift & 2**32 - 1 for m in middle], jnp.uint32) for shift in (32, 0))
    np.testing.assert_array_equal(propose_learned(bits, state)[0], np.repeat(np.arange(range_max), counts))
