"""Initial values of embedding and softmax rows, and of kernels."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.parallel.mesh import Mesh, padded_rows

EMBEDDING_SCALE = 0.58  # of word vectors in the embedding: the deviation of uniform numbers in [-1, 1]
SOFTMAX_SCALE = 0.4  # of word vectors in the softmax rows


def initial_embedding(config: ModelConfig, vectors: jax.Array | None, rngs: nnx.Rngs, mesh: Mesh | None) -> jax.Array:
    """Returns the embedding `[V, embedding_size]`: scaled word vectors, or uniform numbers in [-1, 1]."""
    if vectors is None:
        return _uniform(rngs.params(), (config.vocab_size, config.embedding_size), 1.0, mesh)
    return EMBEDDING_SCALE * vectors


def initial_weights(config: ModelConfig, vectors: jax.Array | None, rngs: nnx.Rngs, mesh: Mesh | None) -> jax.Array:
    """Returns the softmax rows `[V, softmax_size]`: word vectors, scaled and rotated; or Glorot uniform.

    Rows that are tied to the embedding are not rotated, and uniform in [-0.1, 0.1].
    """
    shape = (config.vocab_size, config.softmax_size)
    if vectors is None:
        return _uniform(rngs.params(), shape, 0.1 if config.tied else (6.0 / sum(shape)) ** 0.5, mesh)
    if config.tied:
        return SOFTMAX_SCALE * vectors
    shape = (config.embedding_size, config.softmax_size)
    rotation = jax.nn.initializers.orthogonal()(rngs.params(), shape, jnp.float32)
    return (SOFTMAX_SCALE * vectors) @ rotation


def _uniform(key: jax.Array, shape: tuple[int, int], limit: float, mesh: Mesh | None) -> jax.Array:
    """Draws from [-limit, limit]; rows of padding are zeros. A row is the same on any mesh."""
    if mesh is None:
        return _uniform_in_blocks(key, shape, limit)
    rows = jnp.arange(padded_rows(shape[0], mesh))
    return jnp.where(rows[:, None] < shape[0], _uniform_rows(key, rows, shape[1], limit), 0.0)


@partial(jax.jit, static_argnames="shape")
def _uniform_in_blocks(key: jax.Array, shape: tuple[int, int], limit: float) -> jax.Array:
    """Draws `_uniform_rows` in place: all at once, they would need three times the memory of the table."""
    block = min(1024, shape[0])

    def draw(i: jax.Array, table: jax.Array) -> jax.Array:
        start = jnp.minimum(i * block, shape[0] - block)  # the last block may draw some rows again
        rows = _uniform_rows(key, start + jnp.arange(block), shape[1], limit)
        return jax.lax.dynamic_update_slice_in_dim(table, rows, start, 0)

    return jax.lax.fori_loop(0, -(-shape[0] // block), draw, jnp.zeros(shape, jnp.float32))


def _uniform_rows(key: jax.Array, rows: jax.Array, width: int, limit: float) -> jax.Array:
    """Draws `[len(rows), width]` numbers from [-limit, limit]. Those of a row depend on its index alone."""

    def draw(row: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, row), (width,), jnp.float32, -limit, limit)

    return jax.vmap(draw)(rows)


def glorot_uniform(rngs: nnx.Rngs, shape: tuple[int, int]) -> jax.Array:
    """Returns a kernel with Keras' initial values."""
    return jax.nn.initializers.glorot_uniform()(rngs.params(), shape, jnp.float32)
