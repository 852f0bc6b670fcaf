"""Collectives across the mesh, used inside `jax.shard_map`.

The functions that take `axes` work on the shards of one device. Without axes, as on a single device, they return their
arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlm.parallel.mesh import Axes, stream_axes, vocab_axes
from jaxlm.row_updates import RowGradient, take_rows


def on_mesh(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """Returns a function of sharded arrays that applies `function` to the shards of each device."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def psum(x: Any, axes: Axes) -> Any:
    """Sums arrays along axes."""
    return jax.lax.psum(x, axes) if axes else x


def pmax(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns the maximum along axes; not differentiated."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, axes) if axes else x


def all_gather(x: jax.Array, axes: Axes) -> jax.Array:
    """Concatenates the rows of all devices along axes, for a different use on each device: gradients are summed."""
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def all_gather_invariant(x: jax.Array, axes: Axes) -> jax.Array:
    """Concatenates the rows of all devices along axes, for the same use on each device; not differentiated."""
    return jax.lax.all_gather(x, axes, tiled=True, to="invarying") if axes else x


def reduce_scatter(x: jax.Array, axes: Axes) -> jax.Array:
    """Sums arrays along axes; each device receives its shard of the rows."""
    return jax.lax.psum_scatter(x, axes, tiled=True) if axes else x


def as_varying(tree: Any, axes: Axes) -> Any:
    """Marks arrays that are replicated along axes for a different use on each device: gradients are summed."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), tree) if axes else tree


def local_rows(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns a device's shard of replicated rows, the inverse of `all_gather`."""
    if not axes:
        return x
    size = x.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)


def local_ids(ids: jax.Array, num_rows: int, axes: Axes) -> jax.Array:
    """Returns ids counted from the first row of a device's shard `[num_rows]`; `num_rows` for rows of other shards."""
    if not axes:
        return ids
    local = ids - jax.lax.axis_index(axes) * num_rows
    return jnp.where((local >= 0) & (local < num_rows), local, num_rows)


def take_local_rows(shard: jax.Array, ids: jax.Array, axes: Axes) -> jax.Array:
    """Returns the rows of ids, zeros for rows of other shards: the sum over all devices is `take_rows`."""
    if not axes:
        return take_rows(shard, ids)
    return shard.at[local_ids(ids, shard.shape[0], axes)].get(mode="fill", fill_value=0)


def lookup(shard: jax.Array, ids: jax.Array, axes: Axes) -> jax.Array:
    """Returns the rows `[b, T, ...]` of the ids `[b, T]` of a device, from all shards."""
    return reduce_scatter(take_local_rows(shard, all_gather_invariant(ids, axes), axes), axes)


def local_gradient(gradient: RowGradient, num_rows: int, axes: Axes) -> RowGradient:
    """Returns the part of a gradient in a device's shard `[num_rows]`, with zeros for the rest."""
    if not axes:
        return gradient
    indices = local_ids(gradient.indices, num_rows, axes)
    is_own = (indices < num_rows).reshape(-1, *(1,) * (gradient.values.ndim - 1))
    return RowGradient(indices, jnp.where(is_own, gradient.values, 0))


def nan_unless_valid(loss: jax.Array, ids: Sequence[jax.Array], vocab_size: int, mesh: Mesh | None) -> jax.Array:
    """Returns a loss, or NaN if an id is out of range: on one device, `take_rows` gave NaN for its row."""
    if not vocab_axes(mesh):
        return loss
    invalid = sum(jnp.sum((each < 0) | (each >= vocab_size)) for each in ids)
    return jnp.where(psum(invalid, stream_axes(mesh)) > 0, jnp.nan, loss)
