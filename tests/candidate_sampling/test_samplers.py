"""The samplers against their distributions, and that a key decides what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import branches_for
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import LEVEL, SAMPLERS, draw_many, num_tries, probabilities, sampler
from scipy import stats

from jaxlm.candidate_sampling.distributions import learned_unigrams, unigram_table
from jaxlm.candidate_sampling.samplers import (
    all_candidate_sampler,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    log_uniform_probability,
    uniform_candidate_sampler,
)
from jaxlm.errors import InputError


@pytest.mark.parametrize(
    ("name", "range_max"),
    [("log_uniform", n) for n in (1, 2, 31, 33, 1000)] + [(n, v) for n in SAMPLERS[1:] for v in (1, 97)],
)
def test_frequencies_with_replacement_follow_the_distribution(name, range_max):
    candidates, _ = draw_many(name, 500, False, range_max, 400)
    observed = np.bincount(candidates.ravel(), minlength=range_max)
    assert observed.size == range_max
    if range_max > 1:
        assert stats.chisquare(observed, probabilities(name, range_max) * candidates.size).pvalue > LEVEL


def test_the_tail_of_ten_million_classes_is_resolved():
    range_max = 10_000_000
    candidates = draw_many("log_uniform", 100_000, False, range_max, 20)[0].ravel()
    n = candidates.astype(np.int64) + 1
    octave = np.bincount(np.floor(np.log2(n)).astype(int), minlength=24)
    edges = np.minimum(2.0 ** np.arange(25), range_max + 1)
    expected = np.diff(np.log(edges)) / np.log(range_max + 1) * n.size
    assert stats.chisquare(octave, expected).pvalue > LEVEL
    # within the last whole octave, all remainders modulo 64 are equally likely
    tail = n[(n >= 2**22) & (n < 2**23)]
    assert stats.chisquare(np.bincount(tail % 64, minlength=64)).pvalue > LEVEL
    position = (np.log2(tail) - 22) % 1
    assert stats.kstest(position, "uniform").pvalue > LEVEL
    # a float32 uniform reaches ids about 10 apart here, so that many draws would coincide
    distinct = np.unique(tail).size
    expected_distinct = 2**22 * (1 - np.exp(-tail.size / 2**22))
    assert abs(distinct - expected_distinct) < 0.01 * expected_distinct


def test_uniform_reaches_each_of_ten_million_classes_and_unigram_each_band_of_a_million():
    range_max, none = 10_000_000, jnp.zeros((1, 1), int)
    ids = uniform_candidate_sampler(jax.random.key(0), none, 1_000_000, False, range_max).sampled_candidates
    assert stats.kstest((np.asarray(ids) + 0.5) / range_max, "uniform").pvalue > LEVEL
    assert stats.chisquare(np.bincount(ids % 64, minlength=64)).pvalue > LEVEL
    range_max, key = 1_000_000, jax.random.key(1)
    weights = 1.0 / np.arange(1, range_max + 1)
    table = unigram_table(weights)  # the alias method draws its columns as the uniform sampler does
    ids = fixed_unigram_candidate_sampler(key, none, 1_000_000, False, range_max, table).sampled_candidates
    edges = np.minimum(2 ** np.arange(21), range_max + 1) - 1
    mass = np.diff(np.concatenate([[0.0], np.cumsum(weights)])[edges]) / weights.sum()
    assert stats.chisquare(np.histogram(ids, edges)[0], mass * 1_000_000).pvalue > LEVEL


def test_inclusion_probability_is_that_of_rejecting_repeats():
    range_max, num_sampled = 6, 3
    candidates, _ = draw_many("log_uniform", num_sampled, True, range_max, 20_000)
    observed = np.bincount(candidates.ravel(), minlength=range_max)
    p = probabilities("log_uniform", range_max)
    inclusion = np.zeros(range_max)
    for first in range(range_max):  # successive sampling without replacement, by enumeration
        for second in set(range(range_max)) - {first}:
            for third in set(range(range_max)) - {first, second}:
                chance = p[first] * p[second] / (1 - p[first]) * p[third] / (1 - p[first] - p[second])
                inclusion[[first, second, third]] += chance
    error = (observed / 20_000 - inclusion) / np.sqrt(inclusion * (1 - inclusion) / 20_000)
    assert np.abs(error).max() < 4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("unique", [True, False])
def test_expected_counts_follow_from_the_distribution(name, unique):
    labels, p = jnp.array([[0, 7], [3, 99]]), probabilities(name, 100)
    values = sampler(name, 100)(jax.random.key(3), labels, 50, unique)
    tries = num_tries(np.asarray(values.true_expected_count)[1, 1], p[99], 50) if unique else 0
    assert (tries > 50) == unique
    expected = -np.expm1(tries * np.log1p(-p)) if unique else 50 * p
    np.testing.assert_allclose(values.true_expected_count, expected[labels], rtol=3e-6)
    np.testing.assert_allclose(values.sampled_expected_count, expected[values.sampled_candidates], rtol=3e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [1, 150])
def test_all_classes_can_be_sampled(name, size):
    values = sampler(name, size)(jax.random.key(0), jnp.zeros((1, 1), int), size, True)
    assert sorted(values.sampled_candidates.tolist()) == list(range(size))
    assert np.isfinite(values.sampled_expected_count).all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(log_size=st.floats(0, np.log(1e7)), fraction=st.floats(0, 1), seed=st.integers(0, 999))
def test_any_size_gives_distinct_ids_in_range_and_finite_counts(log_size, fraction, seed):
    range_max = int(np.exp(log_size))
    num_sampled = max(1, int(min(range_max, 3000) ** fraction))
    labels = jnp.array([[0], [range_max - 1], [range_max // 2]])
    values = log_uniform_candidate_sampler(jax.random.key(seed), labels, num_sampled, True, range_max)
    ids = np.asarray(values.sampled_candidates)
    assert np.unique(ids).size == num_sampled and ids.min() >= 0 and ids.max() < range_max
    for count in (values.true_expected_count, values.sampled_expected_count):
        assert (count > 0).all() and (count <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("name", "num_sampled", "range_max"),
    [("log_uniform", 60, 503), ("learned_unigram", 41, 41)],
)
def test_samples_are_the_same_on_every_platform(name, num_sampled, range_max, monkeypatch):
    arguments = (jax.random.key(5), jnp.array([[1], [2]]), num_sampled, True)
    samples = []
    for platform in ("cpu", "default"):
        with branches_for(platform, monkeypatch):
            samples.append(sampler(name, range_max)(*arguments))
    jax.tree.map(np.testing.assert_array_equal, *samples)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_a_pure_function_of_the_key_under_jit_and_vmap(name):
    labels, draw = jnp.zeros((3, 1), int), sampler(name, 300)

    def sample(key):
        return draw(key, labels, 30, True)

    keys = jax.random.split(jax.random.key(5), 4)
    together = jax.jit(jax.vmap(sample))(keys)
    for n, key in enumerate(keys):
        for batched, single in zip(together, sample(key), strict=True):
            np.testing.assert_allclose(batched[n], single, rtol=1e-6)
    assert not np.array_equal(together[0][0], together[0][1])


def test_any_kind_of_key_works():
    for kind in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=kind)
        values = log_uniform_candidate_sampler(key, jnp.zeros((1, 1), int), 20, True, 50)
        assert np.unique(values.sampled_candidates).size == 20


def test_probability_sums_to_one():
    total = np.asarray(log_uniform_probability(jnp.arange(200_000), 200_000), np.float64).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "num_sampled", "range_max", "word"),
    [
        (np.zeros(2, int), 1, 5, "true_classes"),
        (np.zeros((2, 1)), 1, 5, "true_classes"),
        (np.full((2, 1), 5), 1, 5, "true_classes"),
        (np.full((2, 1), -1), 1, 5, "true_classes"),
        (np.zeros((2, 1), int), 6, 5, "num_sampled"),
        (np.zeros((2, 1), int), 0, 5, "num_sampled"),
        (np.zeros((2, 1), int), 1, 0, "range_max"),
    ],
)
def test_arguments_out_of_range_raise(classes, num_sampled, range_max, word):
    for sample in (log_uniform_candidate_sampler, uniform_candidate_sampler, all_candidate_sampler):
        with pytest.raises(InputError, match=f"Invalid `{word}`"):
            sample(jax.random.key(0), classes, num_sampled, True, range_max)


def test_a_state_of_another_size_raises():
    arguments = (jax.random.key(0), jnp.zeros((1, 1), int), 2, True, 9)
    with pytest.raises(InputError, match="unigrams"):
        fixed_unigram_candidate_sampler(*arguments, unigram_table([1, 2, 3]))
    with pytest.raises(InputError, match="above 0"):
        fixed_unigram_candidate_sampler(*arguments, unigram_table([1] + [0] * 8))
    with pytest.raises(InputError, match="state"):
        learned_unigram_candidate_sampler(*arguments, learned_unigrams(3))
    with pytest.raises(InputError, match="num_sampled"):
        all_candidate_sampler(*arguments)


def test_lists_are_classes_too():
    lists, arrays = (
        log_uniform_candidate_sampler(jax.random.key(0), classes, 3, True, 9)
        for classes in ([[1], [2]], jnp.array([[1], [2]]))
    )
    np.testing.assert_array_equal(lists.true_expected_count, arrays.true_expected_count)
