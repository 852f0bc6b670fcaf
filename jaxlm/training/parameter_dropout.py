"""Dropout of parameters in a training step: whole words of the lookups, and weights of recurrent kernels."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.parallel.mesh import leaf_name
from jaxlm.training.state import TrainState

WORDS, WEIGHTS = 2**32 - 1, 2**32 - 2  # folded into the dropout key, as the numbers of streams are


def drop_parameters(
    state: TrainState, inputs: tuple[jax.Array, ...], dense: Any, looked_up: tuple[jax.Array, ...], key: jax.Array
) -> tuple[Any, tuple[jax.Array, ...]]:
    """Returns the dense parameters and the looked-up rows with those of the step dropped, as `TrainConfig` says.

    Args:
      state: of the step.
      inputs: the ids of each lookup.
      dense: the trained parameters of the body.
      looked_up: the rows of each lookup.
      key: the dropout key of the step, the same on all devices.
    """
    config = state.config
    if config.weight_dropout:
        dense = drop_weights(dense, config.weight_dropout, jax.random.fold_in(key, WEIGHTS))
    if config.embedding_dropout:
        key, tables = jax.random.fold_in(key, WORDS), sorted(state.tables)
        keys = [jax.random.fold_in(key, tables.index(name)) for name in state.lookups]
        triples = zip(looked_up, inputs, keys, strict=True)
        looked_up = tuple(drop_words(rows, ids, config.embedding_dropout, key) for rows, ids, key in triples)
    return dense, looked_up


def drop_words(rows: jax.Array, ids: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops whole words: rows[i] * mask[ids[i]] / (1 - rate), where mask[id] is 1 with probability 1 - rate.

    The draw of a word depends on its id and the key alone, so that no mask over the vocabulary is made.

    Args:
      rows: `[..., E]` float32, the rows of the ids.
      ids: `[...]` integer.
      rate: in [0, 1).
      key: `jax.random.key`.

    References:
      Merity et al. 2018, https://arxiv.org/abs/1708.02182, section 4.3.
    """

    def is_kept(id: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, id), 1.0 - rate)

    kept = jax.vmap(is_kept)(ids.reshape(-1)).reshape(ids.shape + (1,) * (rows.ndim - ids.ndim))
    return rows * jnp.where(kept, 1.0 / (1.0 - rate), 0.0).astype(rows.dtype)


def drop_weights(dense: Any, rate: float, key: jax.Array) -> Any:
    """Drops weights of each recurrent kernel: recurrent_kernel * mask / (1 - rate), with one mask per step.

    Args:
      dense: parameters; leaves of other names than `recurrent_kernel` stay as they are.
      rate: in [0, 1).
      key: `jax.random.key`.

    References:
      DropConnect (Wan et al. 2013) on the hidden-to-hidden weights, as in Merity et al. 2018,
      https://arxiv.org/abs/1708.02182, section 2.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(dense)
    dropout = nnx.Dropout(rate)
    dropped = [
        dropout(leaf, deterministic=False, rngs=jax.random.fold_in(key, number))
        if leaf_name(path).split("/")[-1] == "recurrent_kernel"
        else leaf
        for number, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, dropped)
