"""The parameters of a `LanguageModel`: split off, merged, and placed on devices."""

from functools import cache
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.config import ModelConfig
from jaxlm.errors import require
from jaxlm.model.language_model import LanguageModel, RowParam
from jaxlm.parallel.mesh import Mesh, shard


def split_params(model: LanguageModel) -> tuple[nnx.GraphDef, dict[str, jax.Array], dict[str, Any]]:
    """Splits a model, abstract or not, into its structure, its tables and its dense parameters.

    The inverse is `nnx.merge(graphdef, tables, dense)`, or `merge_params` given the config.
    """
    graphdef, *params = nnx.split(model, RowParam, nnx.Param)
    tables, dense = map(nnx.to_pure_dict, params)
    return graphdef, tables, dense


def merge_params(
    config: ModelConfig, mesh: Mesh | None, tables: dict[str, jax.Array], dense: dict[str, Any]
) -> LanguageModel:
    """Makes a model on a mesh, or on one device, of tables and dense parameters."""
    return nnx.merge(_graphdef(config, mesh), tables, dense)


@cache
def _graphdef(config: ModelConfig, mesh: Mesh | None) -> nnx.GraphDef:
    return nnx.graphdef(abstract_model(config, mesh))


def abstract_model(config: ModelConfig, mesh: Mesh | None = None) -> LanguageModel:
    """Returns a model whose arrays are shapes and types without values."""
    return nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0), mesh=mesh))


def shard_model(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """Copies a model from one device onto a mesh, without another copy of a table on any device."""
    _, tables, dense = split_params(model)
    sharded = shard({"tables": tables, "dense": dense}, mesh)
    return merge_params(model.config, mesh, sharded["tables"], sharded["dense"])


def place_like(model: LanguageModel, tree: Any) -> Any:
    """Copies arrays to the device of a model's tables, or to each device of its mesh, where its programs leave them.

    A program is then compiled once, for its first call and all others.
    """
    mesh = model.mesh
    return jax.device_put(tree, model.weights[...].sharding if mesh is None else NamedSharding(mesh, PartitionSpec()))


def require_one_device(model: LanguageModel) -> None:
    """Raises `InputError` if a model is on a mesh."""
    shape = None if model.mesh is None else dict(model.mesh.shape)
    require(shape is None, "model", "a model on a single device, as from `load_model` without a mesh", shape)
