"""A `TrainState` moved onto a mesh and back, and its shapes and shardings."""

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.parallel.mesh import Mesh, leaf_name, map_data, shard, sharded_dim, tree_specs
from jaxlm.training.body import LanguageModelBody
from jaxlm.training.state import TrainState


def sharded_shapes(state: TrainState) -> TrainState:
    """Returns a state with the shape, dtype and sharding of each array instead of the array."""

    def shape(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = None if state.mesh is None else NamedSharding(state.mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, state, tree_specs(state, state.mesh))


def shard_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Copies a state from one device onto a mesh."""
    body = dataclasses.replace(cast(LanguageModelBody, state.body), mesh=mesh)
    return dataclasses.replace(shard(state, mesh), mesh=mesh, body=body)


def gather_state(state: TrainState) -> TrainState:
    """Copies a state from a mesh of this process' devices onto one device, without the padding of the mesh."""
    sizes = {"rows": state.vocab_size, "streams": state.config.batch_size}

    def copy(path: tuple, leaf: jax.Array) -> jax.Array:
        size = sizes.get(sharded_dim(leaf_name(path), leaf.ndim))
        return jnp.asarray(np.asarray(leaf) if size is None else np.asarray(leaf)[:size])

    arrays = jax.tree_util.tree_map_with_path(lambda path, leaf: map_data(partial(copy, path), leaf), state)
    body = dataclasses.replace(cast(LanguageModelBody, state.body), mesh=None)
    return dataclasses.replace(arrays, mesh=None, body=body)
