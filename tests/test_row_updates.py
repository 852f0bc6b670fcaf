"""Row-sparse steps against dense Optax steps: increments compared, untouched rows bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates, update_rows


def dense(gradient: RowGradient, num_rows: int) -> np.ndarray:
    total = np.zeros((num_rows, *gradient.values.shape[1:]), np.float32)
    real = np.asarray(gradient.indices) < num_rows
    np.add.at(total, np.asarray(gradient.indices)[real], np.asarray(gradient.values)[real])
    return total


@settings(max_examples=15, deadline=None, derandomize=True)
@given(num_rows=st.integers(1, 12), size=st.integers(1, 30), width=st.integers(0, 3), seed=st.integers(0, 99))
def test_duplicates_are_summed_once(num_rows, size, width, seed):
    rng = np.random.default_rng(seed)
    indices = jnp.asarray(rng.integers(0, num_rows + 2, size), jnp.int32)  # two ids that are no row
    shape = (size, width) if width else (size,)
    gradient = RowGradient(indices, jnp.asarray(rng.standard_normal(shape), jnp.float32))
    summed = jax.jit(sum_duplicates, static_argnums=1)(gradient, num_rows)
    assert (np.diff(np.asarray(summed.indices)) > 0).all()
    np.testing.assert_allclose(dense(summed, num_rows), dense(gradient, num_rows), rtol=1e-5, atol=1e-6)
    assert set(np.asarray(indices)[np.asarray(indices) < num_rows]) == {
        i for i in summed.indices.tolist() if i < num_rows
    }


@pytest.mark.parametrize("width", [None, 5])
@pytest.mark.parametrize(
    ("transform", "reference"),
    [
        (optax.identity(), optax.sgd(0.3)),
        (optax.scale_by_rss(1e-8), optax.adagrad(0.3, 1e-8)),
        (optax.scale_by_adam(), None),
    ],
    ids=["sgd", "adagrad", "adam"],
)
def test_steps_equal_dense_optax(transform, reference, width):
    num_rows, shape = 40, (40, width) if width else (40,)
    rng = np.random.default_rng(1)
    start = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    table, opt_state = start, transform.init(start)
    dense_table = jnp.zeros_like(start)  # increments alone: the parameter's size would hide an error
    lazy = reference is None
    dense_state = optax.adam(0.3).init(start) if lazy else reference.init(start)
    touched = jnp.asarray(rng.choice(num_rows, 12, replace=False), jnp.int32)
    for _ in range(3):
        # lazy Adam equals the dense step where the same rows come every time
        indices = jnp.concatenate([touched, touched[:3]]) if lazy else jnp.asarray(rng.integers(0, 30, 15), jnp.int32)
        gradient = RowGradient(indices, jnp.asarray(1e-3 * rng.standard_normal((15, *shape[1:])), jnp.float32))
        table, opt_state = update_rows(transform, 0.3, table, opt_state, sum_duplicates(gradient, num_rows))
        updates, dense_state = (reference or optax.adam(0.3)).update(dense(gradient, num_rows), dense_state)
        dense_table += updates
    increments = np.asarray(table) - np.asarray(start)
    untouched = np.asarray(dense_table).reshape(num_rows, -1).any(axis=1) == 0
    assert untouched.any()
    np.testing.assert_array_equal(np.asarray(table)[untouched], np.asarray(start)[untouched])
    np.testing.assert_allclose(increments, dense_table, rtol=1e-4, atol=3e-7)


def test_untouched_moments_stand_still_in_lazy_adam():
    transform, table = optax.scale_by_adam(), jnp.ones((4, 2))
    gradient = RowGradient(jnp.array([1], jnp.int32), jnp.ones((1, 2)))
    table, state = update_rows(transform, 0.1, table, transform.init(table), gradient)
    before = np.asarray(state.mu[1])
    gradient = RowGradient(jnp.array([2], jnp.int32), jnp.ones((1, 2)))
    moved, state = update_rows(transform, 0.1, table, state, gradient)
    np.testing.assert_array_equal(state.mu[1], before)
    np.testing.assert_array_equal(moved[1], table[1])
    assert not np.array_equal(moved[2], table[2])


def test_global_norm_counts_each_row_once():
    gradient = RowGradient(jnp.array([3, 3, 0], jnp.int32), jnp.array([[1.0], [2.0], [2.0]]))
    other = {"kernel": jnp.array([6.0, 2.0])}
    expected = optax.tree.norm([dense(gradient, 5), other])
    ours = jax.jit(lambda g, o: global_norm({"rows": sum_duplicates(g, 5), "dense": o}))(gradient, other)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    np.testing.assert_allclose(ours, np.sqrt(9 + 4 + 36 + 4), rtol=1e-6)
