"""The mesh of devices: how tables and streams of text lie on it, and what its devices tell each other.

Rows of tables are cut along `vocab`, into contiguous shards that are padded to equal sizes and the same along `data`.
Streams of text lie along both axes. The functions that take `axes` run inside of `jax.shard_map`; without axes, which
is on a single device, they do nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import require
from jaxlm.row_updates import RowGradient, take_rows

DATA, VOCAB = "data", "vocab"

Axes = tuple[str, ...]


def make_mesh(data: int = 1, vocab: int | None = None) -> Mesh:
    """Makes a mesh of all devices, those of other processes included.

    Args:
      data: number of replicas of the tables.
      vocab: number of shards of the tables; None for as many as there are devices for.

    Returns:
      A mesh with the axes "data" and "vocab", for `TrainState.from_corpus` and `jaxlm.train`.

    Raises:
      InputError: there are more or fewer devices.

    References:
      `jax.make_mesh`; Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, for the rows.

    >>> dict(make_mesh(data=1, vocab=1).shape)
    {'data': 1, 'vocab': 1}
    """
    devices = jax.devices()
    require(data >= 1, "data_shards", "at least 1", data)
    vocab = max(1, len(devices) // data) if vocab is None else vocab
    require(vocab >= 1, "vocab_shards", "at least 1", vocab)
    needed, everywhere = (
        data * vocab,
        jax.process_count() > 1,
    )  # a process without a part in the mesh would have no work
    fits = needed == len(devices) if everywhere else needed <= len(devices)
    expected = f"{'' if everywhere else 'at most '}{len(devices)} shards in all, one for each device"
    require(fits, "vocab_shards", expected, f"{data} x {vocab}")
    return jax.make_mesh((data, vocab), (DATA, VOCAB), (AxisType.Auto, AxisType.Auto), devices=devices[:needed])


def vocab_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which the rows of tables are cut."""
    return _axes(mesh, VOCAB)


def data_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which tables are the same and streams are not."""
    return _axes(mesh, DATA)


def stream_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which streams lie."""
    return _axes(mesh, DATA, VOCAB)


def _axes(mesh: Mesh | None, *names: str) -> Axes:
    """Returns those of the names along which there is more than one device: others need no collective."""
    return () if mesh is None else tuple(name for name in names if mesh.shape[name] > 1)


def row_spec(mesh: Mesh | None) -> PartitionSpec:
    """Returns how a table lies on a mesh."""
    return PartitionSpec(vocab_axes(mesh))


def stream_spec(mesh: Mesh | None) -> PartitionSpec:
    """Returns how an array of a row for each stream lies on a mesh."""
    return PartitionSpec(stream_axes(mesh))


def mesh_shape(mesh: Mesh | None) -> tuple[int, int]:
    """Returns the number of devices along `data` and along `vocab`."""
    return (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[VOCAB])


def leaf_name(path: tuple) -> str:
    """Returns a name such as "dense/lstms/0/kernel" for the path of an array in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def cut_along(name: str, ndim: int) -> Literal["rows", "streams", ""]:
    """Returns along what an array of a `TrainState` is cut, given its name, such as "tables/weights"; "" if nowhere."""
    part, *rest = name.split("/")
    if part == "tables" or (part == "opt_state" and rest[0] != "dense" and ndim):
        return "rows"
    return "streams" if part == "carry" else ""


def spec_of(name: str, ndim: int, mesh: Mesh | None) -> PartitionSpec:
    """Returns how an array of a `TrainState` lies on a mesh."""
    specs = {"rows": row_spec(mesh), "streams": stream_spec(mesh), "": PartitionSpec()}
    return specs[cut_along(name, ndim)]


def padded_rows(num_rows: int, mesh: Mesh | None) -> int:
    """Returns the number of rows of a table, with those that make its shards equal."""
    return num_rows if mesh is None else _round_up(num_rows, mesh.shape[VOCAB])


def padded_streams(num_streams: int, mesh: Mesh | None) -> int:
    """Returns the number of streams, with those that make the parts of the devices equal."""
    return num_streams if mesh is None else _round_up(num_streams, mesh.size)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def pad(array: Any, size: int) -> Any:
    """Adds rows of zeros to an array up to a size."""
    if array.shape[0] == size:
        return array
    numpy = jnp if isinstance(array, jax.Array) else np
    return numpy.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def place(array: np.ndarray, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Puts an array of the host, the same in all processes, onto a mesh; each device receives its part alone."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def on_mesh(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """Returns a function of arrays on a mesh that runs a given one on each device, on its part of them."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def psum(x: Any, axes: Axes) -> Any:
    """Sums arrays along axes."""
    return jax.lax.psum(x, axes) if axes else x


def pmax(x: jax.Array, axes: Axes) -> jax.Array:
    """Takes the highest along axes; not differentiated."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, axes) if axes else x


def gather(x: jax.Array, axes: Axes) -> jax.Array:
    """Joins the rows of all devices along axes, to be used by each in its own way: the gradients are summed."""
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def gather_equally(x: jax.Array, axes: Axes) -> jax.Array:
    """Joins the rows of all devices along axes, to be used by all in the same way; not differentiated."""
    return jax.lax.all_gather(x, axes, tiled=True, to="invarying") if axes else x


def scatter_sum(x: jax.Array, axes: Axes) -> jax.Array:
    """Sums arrays along axes; each device receives its share of the rows."""
    return jax.lax.psum_scatter(x, axes, tiled=True) if axes else x


def vary(tree: Any, axes: Axes) -> Any:
    """Lets arrays that are the same along axes be used by each device in its own way: the gradients are summed."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), tree) if axes else tree


def own_rows(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns the share of a device of rows that all have: the inverse of `gather`."""
    if not axes:
        return x
    size = x.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)


def local_ids(ids: jax.Array, num_rows: int, axes: Axes) -> jax.Array:
    """Returns ids counted from the first row of a device's shard `[num_rows]`; `num_rows` for rows that others have."""
    if not axes:
        return ids
    local = ids - jax.lax.axis_index(axes) * num_rows
    return jnp.where((local >= 0) & (local < num_rows), local, num_rows)


def take_own_rows(shard: jax.Array, ids: jax.Array, axes: Axes) -> jax.Array:
    """Returns the rows of ids, zeros for rows that other devices have: the sum over all is `take_rows`."""
    if not axes:
        return take_rows(shard, ids)
    return shard.at[local_ids(ids, shard.shape[0], axes)].get(mode="fill", fill_value=0)


def lookup(shard: jax.Array, ids: jax.Array, axes: Axes) -> jax.Array:
    """Returns the rows `[b, T, ...]` of a device's own ids `[b, T]`, from the devices that have them."""
    return scatter_sum(take_own_rows(shard, gather_equally(ids, axes), axes), axes)


def own_gradient(gradient: RowGradient, num_rows: int, axes: Axes) -> RowGradient:
    """Returns the part of a gradient that is in a device's shard `[num_rows]`, with zeros for the rest."""
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
