"""The mesh of devices, and the sharding of tables and streams of text on it.

Rows of tables are sharded along `vocab`, in contiguous shards that are padded to equal sizes, and replicated along
`data`. Streams of text are sharded along both axes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.device_config import MeshConfig
from jaxlm.errors import require

DATA, VOCAB = "data", "vocab"
EVERYWHERE = PartitionSpec()  # of an array that all devices have

Axes = tuple[str, ...]


def make_mesh(data: int = 1, vocab: int | None = None) -> Mesh:
    """Makes a mesh of all devices, those of other processes included.

    Args:
      data: number of replicas of the tables.
      vocab: number of shards of the tables; None uses all devices.

    Returns:
      A mesh with the axes "data" and "vocab", for `TrainState.from_corpus` and `jaxlm.train`.

    Raises:
      InputError: the sizes do not fit the number of devices.

    References:
      `jax.make_mesh`; Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, for the rows.

    >>> dict(make_mesh(data=1, vocab=1).shape)
    {'data': 1, 'vocab': 1}
    """
    return _make_mesh(data, vocab, DATA, VOCAB)


def _make_mesh(data: int, vocab: int | None, data_name: str, vocab_name: str) -> Mesh:
    """Makes the mesh of `make_mesh`; errors name the arguments as the caller calls them."""
    devices = jax.devices()
    require(1 <= data <= len(devices), data_name, f"1 to {len(devices)}, the number of devices", data)
    vocab = len(devices) // data if vocab is None else vocab
    # of several processes, one without a part in the mesh would have no work
    lowest, highest = (len(devices) if jax.process_count() > 1 else 1), len(devices)
    expected = f"{lowest} to {highest} shards in all, the number of devices"
    require(lowest <= data * vocab <= highest, vocab_name, expected, f"{data} x {vocab}")
    return jax.make_mesh((data, vocab), (DATA, VOCAB), (AxisType.Auto, AxisType.Auto), devices=devices[: data * vocab])


def open_mesh(config: MeshConfig = MeshConfig()) -> Mesh | None:  # noqa: B008
    """Returns the mesh of a config, by default of all devices; None if that is one device."""
    mesh = _make_mesh(config.data_shards, config.vocab_shards or None, "data_shards", "vocab_shards")
    return mesh if mesh.size > 1 else None


def vocab_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which the rows of tables are sharded."""
    return _axes(mesh, VOCAB)


def data_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which tables are replicated and streams are sharded."""
    return _axes(mesh, DATA)


def stream_axes(mesh: Mesh | None) -> Axes:
    """Returns the axes along which streams are sharded."""
    return _axes(mesh, DATA, VOCAB)


def _axes(mesh: Mesh | None, *names: str) -> Axes:
    """Returns the axes with more than one device; the others need no collective."""
    return () if mesh is None else tuple(name for name in names if mesh.shape[name] > 1)


def row_spec(mesh: Mesh | None) -> PartitionSpec:
    """Returns the `PartitionSpec` of a table."""
    return PartitionSpec(vocab_axes(mesh))


def stream_spec(mesh: Mesh | None) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array with one row per stream."""
    return PartitionSpec(stream_axes(mesh))


def mesh_shape(mesh: Mesh | None) -> tuple[int, int]:
    """Returns the number of devices along `data` and along `vocab`."""
    return (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[VOCAB])


def leaf_name(path: tuple) -> str:
    """Returns a name such as "dense/lstms/0/kernel" for the path of an array in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sharded_dim(name: str, ndim: int) -> Literal["rows", "streams", ""]:
    """Returns whether an array of a `TrainState`, such as "tables/weights", is sharded by rows, by streams or not."""
    part, *rest = name.split("/")
    if part == "tables" or (part == "opt_state" and rest[0] != "dense" and ndim):
        return "rows"
    return "streams" if part == "carry" else ""


def spec_of(name: str, ndim: int, mesh: Mesh | None) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array of a `TrainState`."""
    specs = {"rows": row_spec(mesh), "streams": stream_spec(mesh), "": PartitionSpec()}
    return specs[sharded_dim(name, ndim)]


def tree_specs(tree: Any, mesh: Mesh | None) -> Any:
    """Returns a `TrainState`, or a part of one, with the `PartitionSpec` of each array instead of the array."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: spec_of(leaf_name(path), jnp.ndim(leaf), mesh), tree)


def padded_rows(num_rows: int, mesh: Mesh | None) -> int:
    """Returns the number of rows of a table, padded to shards of equal size."""
    return num_rows if mesh is None else _round_up(num_rows, mesh.shape[VOCAB])


def padded_streams(num_streams: int, mesh: Mesh | None) -> int:
    """Returns the number of streams, padded to the same number per device."""
    return num_streams if mesh is None else _round_up(num_streams, mesh.size)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def pad(array: Any, size: int) -> Any:
    """Pads an array with rows of zeros up to a size."""
    if array.shape[0] == size:
        return array
    numpy = jnp if isinstance(array, jax.Array) else np
    return numpy.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def on_host() -> AbstractContextManager:
    """Returns a context in which JAX uses the processor, unless JAX_PLATFORMS excludes it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def map_data(function: Callable[[jax.Array], Any], leaf: jax.Array) -> Any:
    """Applies a function to an array, or to the words of a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(function(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return function(leaf)


def place(array: np.ndarray, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Shards an array of the host, the same in all processes, over a mesh; each device receives its shard alone."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def shard(tree: Any, mesh: Mesh) -> Any:
    """Copies the arrays of a `TrainState`, or of a part of one, from one device onto a mesh."""

    def copy(path: tuple, leaf: jax.Array) -> jax.Array:
        name, array = leaf_name(path), np.asarray(leaf)
        padded_size = {"rows": padded_rows, "streams": padded_streams}.get(sharded_dim(name, leaf.ndim))
        array = array if padded_size is None else pad(array, padded_size(array.shape[0], mesh))
        return place(array, mesh, spec_of(name, leaf.ndim, mesh))

    return jax.tree_util.tree_map_with_path(lambda path, leaf: map_data(partial(copy, path), leaf), tree)
