"""Row-sparse steps against dense Optax steps: increments compared, untouched rows bit for bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import InputError
from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates, take_rows, update_rows


def dense(gradient: RowGradient, num_rows: int) -> np.ndarray:
    total = np.zeros((num_rows, *gradient.values.shape[1:]), np.float32)
    real = (np.asarray(gradient.indices) >= 0) & (np.asarray(gradient.indices) < num_rows)
    np.add.at(total, np.asarray(gradient.indices)[real], np.asarray(gradient.values)[real])
    return total


@settings(max_examples=8, deadline=None, derandomize=True)
@given(num_rows=st.integers(1, 12), size=st.integers(0, 30), width=st.integers(0, 3), seed=st.integers(0, 99))
def test_duplicates_are_summed_once(num_rows, size, width, seed):
    rng = np.random.default_rng(seed)
    indices = jnp.asarray(rng.integers(-1, num_rows + 2, size), jnp.int32)  # three ids that are no row
    shape = (size, width) if width else (size,)
    gradient = RowGradient(indices, jnp.asarray(rng.standard_normal(shape), jnp.float32))
    summed = jax.jit(sum_duplicates, static_argnums=1)(gradient, num_rows)
    assert (np.diff(np.asarray(summed.indices)) > 0).all()
    np.testing.assert_allclose(dense(summed, num_rows), dense(gradient, num_rows), rtol=1e-5, atol=1e-6)
    assert set(summed.indices.tolist()) & set(range(num_rows)) == set(indices.tolist()) & set(range(num_rows))


@pytest.mark.parametrize(("dtype", "num_rows"), [("uint8", 256), ("int8", 128), ("uint16", 65530), ("uint32", 9)])
def test_the_type_of_the_indices_changes_nothing(dtype, num_rows):
    values, tx = jnp.arange(1.0, 7.0), optax.adagrad(0.1)
    indices = np.array([num_rows - 1, 2, 3, 2, num_rows - 1, 0])
    tables = []
    for kind in (dtype, "int32"):
        gradient = sum_duplicates(RowGradient(jnp.asarray(indices, kind), values), num_rows)
        table = jnp.ones(num_rows)
        tables.append(update_rows(tx, table, tx.init(table), gradient)[0])
    np.testing.assert_array_equal(*tables)
    assert (np.flatnonzero(tables[0] != 1) == np.unique(indices)).all()


def test_indices_out_of_range_move_no_row():
    gradient = RowGradient(jnp.array([-1, 7, 3, -9]), jnp.ones((4, 2)))
    table, _ = update_rows(optax.sgd(1.0), jnp.zeros((5, 2)), optax.sgd(1.0).init(jnp.zeros((5, 2))), gradient)
    np.testing.assert_array_equal(table[:, 0], [0, 0, 0, -1, 0])


def random_gradient(rng: np.random.Generator, indices: np.ndarray, shape: tuple[int, ...]) -> RowGradient:
    values = 1e-3 * rng.standard_normal((len(indices), *shape[1:]))
    return RowGradient(jnp.asarray(indices, jnp.int32), jnp.asarray(values, jnp.float32))


# in a step that touches only some rows
EXACT = {"sgd": optax.sgd(0.3), "adagrad": optax.adagrad(0.3, 1e-8)}
# in steps that touch all rows
LAZY = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(1e-2),
    "lion": optax.lion(1e-3),
    "schedule": optax.adam(optax.linear_schedule(1e-2, 0.0, 5)),
    "injected rate": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "chain": optax.chain(optax.clip(5e-4), optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-0.01)),
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *itertools.product(EXACT, [(40,), (40, 5), (1, 5), (1,)]),
        *itertools.product(LAZY, [(40, 5)]),
        *itertools.product(["adam"], [(40,), (1, 5)]),
    ],
)
def test_steps_equal_dense_optax(name, shape):
    tx, rng = (EXACT | LAZY)[name], np.random.default_rng(1)
    start = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    table, opt_state = start, tx.init(start)
    expected, dense_state = start, tx.init(start)
    for _ in range(3):
        indices = rng.integers(0, max(1, shape[0] - 10), 15)
        if name in LAZY:  # every row, some of them twice
            indices = rng.permutation(np.concatenate([np.arange(shape[0]), indices]))
        gradient = random_gradient(rng, indices, shape)
        table, opt_state = jax.jit(update_rows, static_argnums=0)(
            tx, table, opt_state, sum_duplicates(gradient, shape[0])
        )
        updates, dense_state = jax.jit(tx.update)(dense(gradient, shape[0]), dense_state, expected)
        expected = expected + updates
    moved, should = np.asarray(table - start), np.asarray(expected - start)  # the size of a parameter hides errors
    untouched = (should.reshape(shape[0], -1) == 0).all(axis=1)
    assert (name in LAZY or shape[0] == 1) or untouched.any()
    np.testing.assert_array_equal(np.asarray(table)[untouched], np.asarray(start)[untouched])
    np.testing.assert_allclose(moved, should, rtol=1e-4, atol=3e-7)
    for ours, theirs in zip(jax.tree.leaves(opt_state), jax.tree.leaves(dense_state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-9)


def test_moments_and_weight_decay_of_untouched_rows_stand_still():
    tx, table = optax.adamw(0.1, weight_decay=0.1), jnp.ones((4, 2))
    gradient = RowGradient(jnp.array([1], jnp.int32), jnp.ones((1, 2)))
    table, state = update_rows(tx, table, tx.init(table), gradient)
    before = np.asarray(state[0].mu[1])
    gradient = RowGradient(jnp.array([2], jnp.int32), jnp.ones((1, 2)))
    moved, state = update_rows(tx, table, state, gradient)
    np.testing.assert_array_equal(state[0].mu[1], before)
    np.testing.assert_array_equal(moved[1], table[1])
    assert not np.array_equal(moved[2], table[2])


def test_a_transformation_that_is_not_element_wise_raises():
    table = jnp.ones((200, 130))
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=8)
    gradient = RowGradient(jnp.array([1]), jnp.ones((1, 130)))
    with pytest.raises(InputError, match="expected an element-wise transformation"):
        update_rows(tx, table, tx.init(table), gradient)


@pytest.mark.parametrize("name", [*EXACT, "adamw"])
def test_rows_are_updated_in_place(name):
    tx = (EXACT | LAZY)[name]
    table = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
    gradient = RowGradient(jax.ShapeDtypeStruct((500,), jnp.int32), jax.ShapeDtypeStruct((500, 64), jnp.float32))
    step = jax.jit(update_rows, static_argnums=0, donate_argnums=(1, 2))
    memory = step.lower(tx, table, jax.eval_shape(tx.init, table), gradient).compile().memory_analysis()
    assert memory.temp_size_in_bytes < table.size * 4 / 10


@pytest.mark.parametrize("ids", [[5], [-1], [2, 10**6], [-(10**6), 0]])
def test_rows_out_of_range_are_nan(ids):
    rows = take_rows(jnp.arange(10.0).reshape(5, 2), np.array(ids))
    inside = (np.array(ids) >= 0) & (np.array(ids) < 5)
    np.testing.assert_array_equal(jnp.isnan(rows).all(axis=1), ~inside)
    np.testing.assert_array_equal(rows[inside, 0], 2.0 * np.array(ids)[inside])


def test_global_norm_counts_each_row_once():
    gradient = RowGradient(jnp.array([3, 3, 0], jnp.int32), jnp.array([[1.0], [2.0], [2.0]]))
    other = {"kernel": jnp.array([6.0, 2.0])}
    expected = optax.tree.norm([dense(gradient, 5), other])
    ours = jax.jit(lambda g, o: global_norm({"rows": sum_duplicates(g, 5), "dense": o}))(gradient, other)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    np.testing.assert_allclose(ours, np.sqrt(9 + 4 + 36 + 4), rtol=1e-6)
