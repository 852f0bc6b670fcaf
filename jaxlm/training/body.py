"""The body of a model: the part between the looked-up rows of its tables and its outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.matmul import product_dtype
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import abstract_model, merge_params, split_params
from jaxlm.parallel.collectives import local_rows, psum
from jaxlm.parallel.mesh import Mesh, padded_streams, stream_axes


class BodyOutputs(NamedTuple):
    """The result of a body."""

    hidden: jax.Array  # [batch_size, ..., D], the inputs of the softmax
    carry: Any = ()  # for the next batch
    other: Any = ()  # the arrays that no gradient updates, such as moving averages
    loss: jax.Array | float = 0.0  # added to the loss of the labels, such as a regularizer


# (dense, other, rows, features, carry, key) -> BodyOutputs. `rows` are those of each array of `Batch.inputs`,
# `features` those of the batch. Without a key, as in evaluation, there is no dropout. It must be hashable, since it is
# static: a function, or a frozen dataclass; another one compiles the step again.
Body = Callable[[Any, Any, tuple[jax.Array, ...], Any, Any, jax.Array | None], BodyOutputs]


@dataclass(frozen=True)
class LanguageModelBody:
    """The body of a `LanguageModel`: its LSTM stack, bottleneck and Dense layers.

    Attributes:
      config: of the model.
      mesh: of the model.
      train: settings of a training step.
    """

    config: ModelConfig
    mesh: Mesh | None
    train: TrainConfig

    def __call__(
        self, dense: Any, other: Any, rows: tuple[jax.Array, ...], features: Any, carry: Any, key: jax.Array | None
    ) -> BodyOutputs:
        """Returns outputs `[batch, time, softmax_size]`, as a `Body`."""
        (embedded,) = rows
        _, tables, _ = split_params(abstract_model(self.config, self.mesh))  # the tables are not read here
        model = self.model(tables, dense, other)
        if key is None:
            hidden, carry = model.hidden(embedded, carry)
            return BodyOutputs(hidden, carry, other)
        # a key for each stream, whatever device it lies on
        streams = local_rows(jnp.arange(padded_streams_of(len(embedded), self.mesh)), stream_axes(self.mesh))
        keys = jax.vmap(lambda stream: jax.random.fold_in(key, stream))(streams)
        settings = keys, product_dtype(self.train.compute_dtype, embedded.shape[1]), self.train.variational_dropout
        outputs, dropped, carry = model.lstm_outputs(embedded, carry, *settings)
        penalty = self._penalty(outputs, dropped, streams < self.train.batch_size)
        return BodyOutputs(model.dense_outputs(dropped, *settings), carry, other, penalty)

    def _penalty(self, outputs: jax.Array, dropped: jax.Array, is_real: jax.Array) -> jax.Array | float:
        """Returns the regularization of the outputs `[batch, time, H]` of the last LSTM, without a mesh's padding."""

        def mean_square(x: jax.Array) -> jax.Array:
            total = psum(jnp.sum(jnp.where(is_real[:, None, None], x * x, 0.0)), stream_axes(self.mesh))
            return total / max(1, self.train.batch_size * x.shape[1] * x.shape[2])

        alpha, beta = self.train.activation_regularization, self.train.temporal_activation_regularization
        penalty = alpha * mean_square(dropped) if alpha else 0.0
        return penalty + beta * mean_square(outputs[:, 1:] - outputs[:, :-1]) if beta else penalty

    def model(self, tables: Any, dense: Any, other: Any) -> LanguageModel:
        """Returns the model that has the given arrays."""
        return merge_params(self.config, self.mesh, tables, merge_trees(dense, other))


def padded_streams_of(local: int, mesh: Mesh | None) -> int:
    """Returns the number of streams of all devices, given that of one."""
    return local if mesh is None else padded_streams(local * mesh.size, mesh)


def split_tree(tree: dict, names: frozenset[str]) -> tuple[dict, dict]:
    """Splits a nested dict in two: the leaves without the names, such as "lstms/0/kernel", and those with them."""
    flat = flatten_dict(tree)
    named = {path: leaf for path, leaf in flat.items() if "/".join(map(str, path)) in names}
    return unflatten_dict({path: leaf for path, leaf in flat.items() if path not in named}), unflatten_dict(named)


def merge_trees(first: dict, second: dict) -> dict:
    """The inverse of `split_tree`."""
    return unflatten_dict(flatten_dict(first) | flatten_dict(second))
