"""The sampler against its law and against TensorFlow's op; fixed seeds, p-values above 1e-3 asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from jaxlm.sampling import _draw, log_uniform_candidate_sampler, log_uniform_probability

LEVEL = 1e-3


def law(range_max: int) -> np.ndarray:
    k = np.arange(range_max)
    return np.log1p(1 / (k + 1.0)) / np.log(range_max + 1)


def draw_many(num_sampled: int, unique: bool, range_max: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(1), repeats)
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: _draw(key, num_sampled, unique, range_max), keys))
    candidates, num_tries = draw(keys)
    return np.asarray(candidates), np.asarray(num_tries)


@pytest.mark.parametrize("range_max", [1, 2, 3, 31, 32, 1000, 1001])
def test_frequencies_with_replacement_are_the_law(range_max):
    candidates, num_tries = draw_many(500, False, range_max, 400)
    observed = np.bincount(candidates.ravel(), minlength=range_max)
    assert observed.size == range_max
    assert (num_tries == 500).all()
    if range_max > 1:
        assert stats.chisquare(observed, law(range_max) * candidates.size).pvalue > LEVEL


def test_tail_of_ten_million_has_its_resolution():
    range_max = 10_000_000
    candidates = draw_many(100_000, False, range_max, 20)[0].ravel()
    n = candidates.astype(np.int64) + 1
    octave = np.bincount(np.floor(np.log2(n)).astype(int), minlength=24)
    edges = np.minimum(2.0 ** np.arange(25), range_max + 1)
    expected = np.diff(np.log(edges)) / np.log(range_max + 1) * n.size
    assert stats.chisquare(octave, expected).pvalue > LEVEL
    # within the last whole octave: even and odd ids, and 64 remainders, are as likely as the law has them
    tail = n[(n >= 2**22) & (n < 2**23)]
    assert stats.chisquare(np.bincount(tail % 64, minlength=64)).pvalue > LEVEL
    position = (np.log2(tail) - 22) % 1
    assert stats.kstest(position, "uniform").pvalue > LEVEL
    # a float32 uniform reaches ids about 10 apart here, so that many draws would coincide
    distinct = np.unique(tail).size
    expected_distinct = 2**22 * (1 - np.exp(-tail.size / 2**22))
    assert abs(distinct - expected_distinct) < 0.01 * expected_distinct


@pytest.mark.parametrize(("num_sampled", "range_max"), [(20, 100), (64, 5000)])
def test_unique_draws_follow_tensorflow(num_sampled, range_max):
    repeats = 3000
    candidates, num_tries = draw_many(num_sampled, True, range_max, repeats)
    assert all(np.unique(row).size == num_sampled for row in candidates)
    assert candidates.min() >= 0 and candidates.max() < range_max
    probe = range_max // 2
    p = law(range_max)[probe]

    @tf.function
    def tf_draw():
        return tf.random.log_uniform_candidate_sampler([[probe]], 1, num_sampled, True, range_max, seed=7)[:2]

    tf_ids, tf_tries = [], []
    for _ in range(repeats):
        ids, expected = tf_draw()
        tf_ids.append(ids.numpy())
        expected = float(expected[0, 0])
        none_rejected = np.isclose(expected, p * num_sampled, rtol=1e-6)
        tf_tries.append(num_sampled if none_rejected else round(np.log1p(-expected) / np.log1p(-p)))
    assert stats.ks_2samp(num_tries, tf_tries).pvalue > LEVEL
    bands = np.unique(np.geomspace(1, range_max + 1, 12).astype(int)) - 1
    ours = np.histogram(candidates, bands)[0]
    theirs = np.histogram(np.array(tf_ids), bands)[0]
    assert stats.chi2_contingency(np.array([ours, theirs]) + 1).pvalue > LEVEL


def test_inclusion_probability_is_that_of_rejecting_repeats():
    range_max, num_sampled = 6, 3
    candidates, _ = draw_many(num_sampled, True, range_max, 20_000)
    observed = np.bincount(candidates.ravel(), minlength=range_max)
    p = law(range_max)
    inclusion = np.zeros(range_max)
    for first in range(range_max):  # successive sampling without replacement, by enumeration
        for second in set(range(range_max)) - {first}:
            for third in set(range(range_max)) - {first, second}:
                chance = p[first] * p[second] / (1 - p[first]) * p[third] / (1 - p[first] - p[second])
                inclusion[[first, second, third]] += chance
    error = (observed / 20_000 - inclusion) / np.sqrt(inclusion * (1 - inclusion) / 20_000)
    assert np.abs(error).max() < 4


def test_expected_counts_are_those_of_tensorflow():
    labels = jnp.array([[0, 7], [3, 99]])
    for unique in (True, False):
        values = log_uniform_candidate_sampler(jax.random.key(3), labels, 50, unique, 100)
        p = law(100)
        tries = int(_draw(jax.random.key(3), 50, unique, 100)[1])
        assert (tries > 50) == unique
        expected = -np.expm1(tries * np.log1p(-p)) if unique else 50 * p
        np.testing.assert_allclose(values.true_expected_count, expected[labels], rtol=2e-6)
        np.testing.assert_allclose(values.sampled_expected_count, expected[values.sampled_candidates], rtol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 17, 100, 1500])
def test_all_classes_can_be_sampled(size):
    values = log_uniform_candidate_sampler(jax.random.key(0), jnp.zeros((1, 1), int), size, True, size)
    assert sorted(values.sampled_candidates.tolist()) == list(range(size))
    assert np.isfinite(values.sampled_expected_count).all()


def test_is_a_pure_function_of_the_key_under_jit_and_vmap():
    labels = jnp.zeros((3, 1), int)

    def sample(key):
        return log_uniform_candidate_sampler(key, labels, 30, True, 300)

    keys = jax.random.split(jax.random.key(5), 4)
    together = jax.jit(jax.vmap(sample))(keys)
    for n, key in enumerate(keys):
        for batched, single in zip(together, sample(key), strict=True):
            np.testing.assert_allclose(batched[n], single, rtol=1e-6)
    assert not np.array_equal(together[0][0], together[0][1])


def test_probability_sums_to_one():
    total = np.asarray(log_uniform_probability(jnp.arange(200_000), 200_000), np.float64).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "num_sampled", "range_max", "word"),
    [((2,), 1, 5, "true_classes"), ((2, 1), 6, 5, "num_sampled"), ((2, 1), 0, 5, "num_sampled"), ((2, 1), 1, 0, "V")],
)
def test_arguments_out_of_range_raise(classes, num_sampled, range_max, word):
    with pytest.raises(ValueError, match=word if word != "V" else "range_max"):
        log_uniform_candidate_sampler(jax.random.key(0), jnp.zeros(classes, int), num_sampled, True, range_max)
