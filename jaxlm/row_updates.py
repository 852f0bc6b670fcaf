"""Gradients of table rows, and Optax steps on those rows alone, in place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RowGradient(NamedTuple):
    """The gradient of a table `[V, ...]`, zero but for the listed rows."""

    indices: jax.Array  # [K] int32; V and above mark places that hold no row
    values: jax.Array  # [K, ...], added up where an index stands more than once


def sum_duplicates(gradient: RowGradient, num_rows: int) -> RowGradient:
    """Adds up the values of equal indices.

    Args:
      gradient: `[K]` indices in any order, with repeats.
      num_rows: number of rows V of the table.

    Returns:
      A `RowGradient` of the same shapes with strictly increasing indices; places left over have
      indices of `num_rows` and above, and values of zero.

    References:
      `tf.IndexedSlices`, deduplicated as `tf.keras` optimizers do before a sparse update.
    """
    size = gradient.indices.size
    order = jnp.argsort(gradient.indices, stable=True)
    indices = gradient.indices[order]
    first = jnp.concatenate([jnp.ones(1, bool), indices[1:] != indices[:-1]])
    place = jnp.cumsum(first, dtype=jnp.int32) - 1
    # inside the scatter: values stay in their own order, so no gathered copy of them is made
    values = jnp.zeros_like(gradient.values).at[place[jnp.argsort(order)]].add(gradient.values)
    unused = num_rows + jnp.arange(size, dtype=indices.dtype)
    return RowGradient(unused.at[place].set(jnp.where(indices < num_rows, indices, unused[place])), values)


def update_rows(
    transform: optax.GradientTransformation,
    learning_rate: jax.Array | float,
    table: jax.Array,
    opt_state: Any,
    gradient: RowGradient,
) -> tuple[jax.Array, Any]:
    """Applies an element-wise Optax transformation to the touched rows: table[i] -= learning_rate * update[i].

    With SGD and Adagrad this equals the dense Optax step, since a zero gradient moves nothing there.
    With Adam it is lazy: the moments of untouched rows stand still.

    Args:
      transform: element-wise, such as `optax.scale_by_rss()`; the learning rate left out.
      learning_rate: scalar.
      table: `[V, ...]` float.
      opt_state: `transform.init(table)`; leaves of the table's shape are updated by rows too.
      gradient: with distinct indices, as from `sum_duplicates`.

    Returns:
      The table and the optimizer state; in place where the caller donates them.

    References:
      `torch.optim.SparseAdam`, `tf.raw_ops.ResourceSparseApplyAdagradV2`.
    """
    indices = gradient.indices

    def is_table(leaf: jax.Array) -> bool:
        return leaf.shape == table.shape

    def gather(leaf: jax.Array) -> jax.Array:
        return leaf.at[indices].get(mode="clip") if is_table(leaf) else leaf

    def scatter(leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return leaf.at[indices].set(rows, mode="drop", unique_indices=True) if is_table(leaf) else rows

    updates, rows_state = transform.update(gradient.values, jax.tree.map(gather, opt_state))
    opt_state = jax.tree.map(scatter, opt_state, rows_state)
    table = table.at[indices].add(-learning_rate * updates, mode="drop", unique_indices=True)
    return table, opt_state


def global_norm(gradients: Any) -> jax.Array:
    """The norm of all leaves; a `RowGradient` with distinct indices counts as its values."""

    def is_rows(leaf: Any) -> bool:
        return isinstance(leaf, RowGradient)

    leaves = jax.tree.leaves(gradients, is_leaf=is_rows)
    return optax.tree.norm([leaf.values if is_rows(leaf) else leaf for leaf in leaves])
