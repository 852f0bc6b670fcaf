"""Lookups, gradients and in-place Optax updates of rows of tables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxlm.errors import require
from jaxlm.token_ids import as_int32


class RowGradient(NamedTuple):
    """The gradient of a table `[V, ...]` that is zero except in the listed rows."""

    indices: jax.Array  # [K] integer; those that are not in [0, V) mark entries without a row
    values: jax.Array  # [K, ...], summed if an index occurs more than once


def take_rows(table: jax.Array, ids: ArrayLike) -> jax.Array:
    """Returns rows of a table `[V, ...]`. An id that is not in [0, V) gives NaN, never another row.

    >>> take_rows(jnp.array([1.0, 2.0]), jnp.array([1, 2, -1])).tolist()
    [2.0, nan, nan]
    """
    return table.at[as_int32("ids", ids)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def sum_duplicates(gradient: RowGradient, num_rows: int) -> RowGradient:
    """Sums the values of equal indices.

    Args:
      gradient: `[K]` integer indices in any order, with repeats. Those that are not in [0, V) are dropped.
      num_rows: number of rows V of the table.

    Returns:
      A `RowGradient` of the same shapes with strictly increasing int32 indices. Entries left over have indices of
      `num_rows` and above, and values of zero.

    References:
      `tf.IndexedSlices`, deduplicated as `tf.keras` optimizers do before a sparse update.

    >>> gradient = RowGradient(jnp.array([3, 1, 3]), jnp.array([1.0, 2.0, 5.0]))
    >>> indices, values = sum_duplicates(gradient, num_rows=4)
    >>> indices.tolist(), values.tolist()
    ([1, 3, 6], [2.0, 6.0, 0.0])
    """
    size = gradient.indices.size
    indices = as_int32("gradient", gradient.indices)
    indices = jnp.where(indices < 0, num_rows, indices)
    order = jnp.argsort(indices, stable=True)
    indices = indices[order]
    first = jnp.concatenate([jnp.ones(min(size, 1), bool), indices[1:] != indices[:-1]])
    slot = jnp.cumsum(first, dtype=jnp.int32) - 1
    # inside the scatter: values stay in their own order, so no gathered copy of them is made
    values = jnp.zeros_like(gradient.values).at[slot[jnp.argsort(order)]].add(gradient.values)
    unused = num_rows + jnp.arange(size, dtype=jnp.int32)
    return RowGradient(unused.at[slot].set(jnp.where(indices < num_rows, indices, unused[slot])), values)


def update_rows(
    tx: optax.GradientTransformation, table: jax.Array, opt_state: optax.OptState, gradient: RowGradient
) -> tuple[jax.Array, optax.OptState]:
    """Applies an Optax transformation to the rows that a gradient touches: table[i] += update[i].

    SGD and Adagrad equal the dense Optax step, because a zero gradient moves nothing there. Any other
    transformation is lazy: moments and weight decay of untouched rows stand still.

    Args:
      tx: an element-wise transformation, learning rate included, such as `optax.adam(1e-3)`, `optax.adagrad(0.1)`,
        `optax.adamw(1e-3)` or a chain of such. Clip by the global norm beforehand, since one table does not see all
        gradients. `optax.lamb` and `optax.lars` are not element-wise: they would take the norms of the touched rows for
        those of the table, which is not detected.
      table: `[V, ...]` float.
      opt_state: `tx.init(table)`. Leaves with a row for each of the table are updated by rows.
      gradient: with distinct indices, as from `sum_duplicates`. Those that are not in [0, V) are dropped.

    Returns:
      The table and the optimizer state, in place if the caller donates them.

    Raises:
      InputError: the state of `tx` holds an array that is neither a scalar nor has the table's rows.

    References:
      `torch.optim.SparseAdam`, `tf.raw_ops.ResourceSparseApplyAdagradV2`.

    >>> tx, table = optax.sgd(0.1), jnp.zeros(4)
    >>> table, _ = update_rows(tx, table, tx.init(table), RowGradient(jnp.array([2]), jnp.array([5.0])))
    >>> table.tolist()
    [0.0, 0.0, -0.5, 0.0]
    """
    for leaf in jax.tree.leaves(opt_state):
        expected = f"an element-wise transformation, with states of {len(table)} rows or of shape ()"
        require(jnp.ndim(leaf) == 0 or leaf.shape[0] == len(table), "tx", expected, jnp.shape(leaf))

    indices = as_int32("gradient", gradient.indices)
    distinct: Any = {"mode": "drop", "unique_indices": True, "wrap_negative_indices": False}

    def gather(leaf: jax.Array) -> jax.Array:
        return leaf.at[indices].get(mode="clip", wrap_negative_indices=False) if jnp.ndim(leaf) else leaf

    def scatter(leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return leaf.at[indices].set(rows, **distinct) if jnp.ndim(leaf) else rows

    updates, rows_state = tx.update(gradient.values, jax.tree.map(gather, opt_state), gather(table))
    opt_state = jax.tree.map(scatter, opt_state, rows_state)
    return table.at[indices].add(updates, **distinct), opt_state


def global_norm(gradients: Any) -> jax.Array:
    """Returns the norm of all leaves. A `RowGradient` with distinct indices counts with its values."""

    def is_rows(leaf: Any) -> bool:
        return isinstance(leaf, RowGradient)

    leaves = jax.tree.leaves(gradients, is_leaf=is_rows)
    return optax.tree.norm([leaf.values if is_rows(leaf) else leaf for leaf in leaves])
