"""The samplers against TensorFlow's ops, with fixed seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_helpers import LEVEL, SAMPLERS, draw_many, num_tries, probabilities, weights_of
from scipy import stats

from jaxlm.candidate_sampling.distributions import learned_unigrams, unigram_table
from jaxlm.candidate_sampling.samplers import (
    all_candidate_sampler,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
)

tf = pytest.importorskip("tensorflow")


def tensorflow_sampler(name: str, probe: int, num_sampled: int, range_max: int):
    classes = tf.constant([[probe]], tf.int64)
    arguments = (classes, 1, num_sampled, True, range_max)
    if name == "log_uniform":
        return tf.function(lambda: tf.random.log_uniform_candidate_sampler(*arguments, seed=7))
    if name == "uniform":
        return tf.function(lambda: tf.random.uniform_candidate_sampler(*arguments, seed=7))
    weights = weights_of(range_max).astype(float).tolist()  # learned counts do not change here
    return tf.function(lambda: tf.random.fixed_unigram_candidate_sampler(*arguments, unigrams=weights, seed=7))


@pytest.mark.parametrize(
    ("name", "num_sampled", "range_max"),
    [(name, 20, 100) for name in SAMPLERS] + [("log_uniform", 64, 5000), ("uniform", 64, 300)],
)
def test_unique_draws_follow_tensorflow(name, num_sampled, range_max):
    repeats, probe = 2000, range_max // 2
    candidates, expected = draw_many(name, num_sampled, True, range_max, repeats, probe)
    assert all(np.unique(row).size == num_sampled for row in candidates)
    assert candidates.min() >= 0 and candidates.max() < range_max
    draw = tensorflow_sampler(name, probe, num_sampled, range_max)
    theirs = [draw() for _ in range(repeats)]
    their_expected = np.array([float(values[1][0, 0]) for values in theirs])
    p = probabilities(name, range_max)[probe]
    tries, their_tries = num_tries(expected, p, num_sampled), num_tries(their_expected, p, num_sampled)
    assert stats.ks_2samp(tries, their_tries).pvalue > LEVEL
    bands = np.unique(np.geomspace(1, range_max + 1, 12).astype(int)) - 1
    counts = [np.histogram(ids, bands)[0] for ids in (candidates, np.array([values[0].numpy() for values in theirs]))]
    assert stats.chi2_contingency(np.array(counts) + 1).pvalue > LEVEL


@pytest.mark.parametrize(("distortion", "num_reserved_ids"), [(1.0, 0), (0.75, 0), (0.0, 2), (0.5, 3)])
def test_fixed_unigram_expects_what_tensorflow_expects(distortion, num_reserved_ids):
    weights = weights_of(40)
    size = weights.size + num_reserved_ids
    labels = np.arange(size)[:, None]
    theirs = tf.random.fixed_unigram_candidate_sampler(
        labels, 1, 9, False, size, "", distortion, num_reserved_ids, unigrams=weights.astype(float).tolist()
    )
    table = unigram_table(weights, distortion, num_reserved_ids)
    ours = fixed_unigram_candidate_sampler(jax.random.key(0), jnp.asarray(labels), 9, False, size, table)
    np.testing.assert_allclose(ours.true_expected_count, theirs.true_expected_count, rtol=1e-5)
    assert (ours.sampled_candidates >= num_reserved_ids).all()


def test_learned_unigram_learns_as_tensorflow_does():
    size, rng = 11, np.random.default_rng(0)
    classes = [rng.integers(0, size, (5, 2)) for _ in range(4)]
    batch = tf.Variable(classes[0])
    draw = tf.function(lambda: tf.random.learned_unigram_candidate_sampler(batch, 2, 6, False, size))
    state = learned_unigrams(size)
    for labels in classes:
        batch.assign(labels)
        ours, state = learned_unigram_candidate_sampler(jax.random.key(0), jnp.asarray(labels), 6, False, size, state)
        np.testing.assert_allclose(ours.true_expected_count, draw().true_expected_count, rtol=1e-6)


def test_all_candidates_equal_those_of_tensorflow():
    labels = jnp.array([[1, 2], [0, 4]])
    for ours, theirs in zip(
        all_candidate_sampler(None, labels, 5, True, 5),
        tf.random.all_candidate_sampler(np.asarray(labels, np.int64), 2, 5, True),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
