"""Log-probabilities, ranks and entropies against full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.losses.word_statistics import word_statistics


@pytest.mark.parametrize(
    ("num_classes", "block_size", "with_biases"),
    [(1, 1024, True), (37, 1024, False), (37, 1, True), (37, 5, True), (101, 100, False)],
)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_statistics_are_those_of_full_logits(num_classes, block_size, with_biases, scale):
    keys = jax.random.split(jax.random.key(num_classes), 4)
    inputs, weights = jax.random.normal(keys[0], (13, 7)), scale * jax.random.normal(keys[1], (num_classes, 7))
    biases = jax.random.normal(keys[2], (num_classes,)) if with_biases else None
    labels = jax.random.randint(keys[3], (13,), 0, num_classes)
    found = word_statistics(inputs, weights, labels, biases=biases, block_size=block_size)
    logits = np.asarray(inputs, np.float64) @ np.asarray(weights, np.float64).T
    logits += 0 if biases is None else np.asarray(biases, np.float64)
    own = logits[np.arange(13), labels]
    highest = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - highest)
    normalizers = np.log(exponentials.sum(axis=1)) + highest[:, 0]
    probabilities = np.exp(logits - normalizers[:, None])
    np.testing.assert_allclose(found.log_probabilities, own - normalizers, rtol=2e-6, atol=2e-6 * (1 + 10 * scale))
    np.testing.assert_array_equal(found.ranks, 1 + (logits > own[:, None]).sum(axis=1))
    entropies = normalizers - (probabilities * logits).sum(axis=1)
    np.testing.assert_allclose(found.entropies, entropies, rtol=1e-5, atol=2e-6 * (1 + 10 * scale))


def test_equal_logits_have_the_first_rank_and_the_highest_entropy():
    found = word_statistics(jnp.ones((3, 4)), jnp.zeros((50, 4)), jnp.array([0, 7, 49]), block_size=8)
    assert found.ranks.tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.entropies, np.log(50), rtol=1e-6)


def test_a_label_is_not_above_itself_however_its_logit_is_rounded():
    inputs = jax.random.normal(jax.random.key(0), (300, 501))
    weights = 10 * jax.random.normal(jax.random.key(1), (90, 501))
    best = (inputs @ weights.T).argmax(axis=1)
    found = word_statistics(inputs, weights, best, block_size=32)
    assert found.ranks.tolist() == [1] * 300 and float(found.log_probabilities.max()) <= 0


def test_an_invalid_label_gives_nan():
    found = word_statistics(jnp.ones((3, 2)), jnp.ones((5, 2)), jnp.array([5, -1, 4]), block_size=2)
    assert np.isnan(found.log_probabilities).tolist() == [True, True, False]
