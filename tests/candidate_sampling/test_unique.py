"""First occurrences against NumPy's, also if ids share buckets."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.candidate_sampling.unique import FIRST_SEEN_SIZE, first_occurrences


@pytest.mark.parametrize("range_max", [1, 50, FIRST_SEEN_SIZE, FIRST_SEEN_SIZE + 1, 2**26])
def test_first_occurrences_equal_those_of_numpy(range_max, branch):
    rng = np.random.default_rng(range_max)
    ids = rng.integers(0, range_max, 3000)
    ids[::3] = ids[::3] // FIRST_SEEN_SIZE * FIRST_SEEN_SIZE  # all in the first bucket of the first round
    present = rng.random(ids.size) < 0.8
    expected = np.zeros(ids.size, bool)
    positions = np.flatnonzero(present)
    expected[positions[np.unique(ids[present], return_index=True)[1]]] = True
    np.testing.assert_array_equal(first_occurrences(jnp.asarray(ids), jnp.asarray(present), range_max), expected)
