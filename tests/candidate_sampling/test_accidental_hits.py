"""Accidental hits against TensorFlow's."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.candidate_sampling.accidental_hits import compute_accidental_hits
from jaxlm.errors import InputError


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    num_classes=st.integers(1, 12),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    num_sampled=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_accidental_hits_equal_those_of_tensorflow(num_classes, shape, num_sampled, seed):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(seed)
    labels, candidates = rng.integers(0, num_classes, shape), rng.integers(0, num_classes, num_sampled)
    theirs = tf.nn.compute_accidental_hits(labels, candidates, shape[1])
    ours = compute_accidental_hits(jnp.asarray(labels), jnp.asarray(candidates), shape[1])
    found = theirs[0].shape[0]
    for mine, their, padding in zip(ours, theirs, (shape[0], num_sampled, 0), strict=True):
        np.testing.assert_array_equal(mine[:found], their)
        np.testing.assert_array_equal(mine[found:], padding)


def test_shapes_that_do_not_fit_raise():
    for shape in ((2, 2), (0,)):
        with pytest.raises(InputError, match="sampled_candidates"):
            compute_accidental_hits(jnp.zeros((2, 1), int), jnp.zeros(shape, int), 1)
