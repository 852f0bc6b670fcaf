"""The losses of a training step, exact and sampled, as functions of the rows that a device has."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.candidate_sampling.samplers import (
    SampledValues,
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.config import ComputeDtype, TrainConfig
from jaxlm.losses.class_rows import ClassRows, nce_loss_of_rows, sampled_softmax_loss_of_rows
from jaxlm.losses.exact import exact_losses
from jaxlm.matmul import product_dtype
from jaxlm.parallel.collectives import all_gather_invariant, as_varying, local_rows, reduce_scatter, take_local_rows
from jaxlm.parallel.mesh import Axes, Mesh, data_axes, stream_axes, vocab_axes
from jaxlm.row_updates import RowGradient
from jaxlm.training.state import TrainState

Gradient = RowGradient | jax.Array


class ExactLoss(NamedTuple):
    """The exact softmax loss, a function of all rows of a device."""

    rows: tuple[jax.Array, jax.Array]  # weights [R, D], biases [R]
    labels: jax.Array  # [N], of all devices along `vocab`
    vocab_size: int
    dtype: ComputeDtype
    mesh: Mesh | None

    def losses(self, rows: Any, hidden: jax.Array) -> jax.Array:
        """Returns the loss of each output `[N, D]`, given weights and biases."""
        weights, biases = as_varying(rows, data_axes(self.mesh))
        return exact_losses(hidden, weights, self.labels, biases, self.vocab_size, vocab_axes(self.mesh), self.dtype)

    def table_gradients(self, d_rows: Any) -> dict[str, Gradient]:
        """Returns the gradient of each table."""
        return {"weights": d_rows[0], "biases": d_rows[1]}


class SampledLoss(NamedTuple):
    """A sampled loss, a function of the rows of the labels that a device has, and of its share of the candidates."""

    rows: ClassRows
    labels: jax.Array  # [N, 1], of all devices along `vocab`
    candidates: jax.Array  # [S], of all devices
    num_labels: int  # of all devices
    values: SampledValues  # with the share of a device, -1 where there is none
    config: TrainConfig
    mesh: Mesh | None

    def losses(self, rows: Any, hidden: jax.Array) -> jax.Array:
        """Returns the loss of each output `[N, D]`, given gathered rows."""
        loss_of_rows = nce_loss_of_rows if self.config.loss == "nce" else sampled_softmax_loss_of_rows
        sampled = as_varying((rows.sampled_weights, rows.sampled_biases), data_axes(self.mesh))
        rows, dtype = ClassRows(*rows[:2], *sampled), self.config.compute_dtype
        return loss_of_rows(rows, self.labels, hidden, self.values, dtype=dtype, axes=vocab_axes(self.mesh))

    def table_gradients(self, d_rows: Any) -> dict[str, Gradient]:
        """Returns the gradient of each table, in the touched rows alone; rows may repeat."""
        data, vocab = data_axes(self.mesh), vocab_axes(self.mesh)

        def of_labels(x: jax.Array) -> jax.Array:
            return all_gather_invariant(x[:, 0], data)[: self.num_labels]

        def of_candidates(x: jax.Array) -> jax.Array:
            return all_gather_invariant(x, vocab)[: self.candidates.size]

        indices = jnp.concatenate([of_labels(self.labels), self.candidates])
        weights = jnp.concatenate([of_labels(d_rows.true_weights), of_candidates(d_rows.sampled_weights)])
        biases = jnp.concatenate([of_labels(d_rows.true_biases), of_candidates(d_rows.sampled_biases)])
        return {"weights": RowGradient(indices, weights), "biases": RowGradient(indices, biases)}


def exact_loss_of(state: TrainState, labels: jax.Array, dtype: ComputeDtype = "float32") -> ExactLoss:
    """Returns the exact loss of a device's labels `[b, P]`, and of those of the others along `vocab`.

    `dtype` is the data type of the operands of its products.
    """
    rows = state.tables["weights"], state.tables["biases"]
    labels = all_gather_invariant(labels.reshape(-1), vocab_axes(state.mesh))
    return ExactLoss(rows, labels, state.vocab_size, dtype, state.mesh)


def training_loss_of(state: TrainState, key: jax.Array, labels: jax.Array) -> ExactLoss | SampledLoss:
    """Returns the loss of the config, for sampled ones after drawing candidates and gathering rows."""
    config, mesh = state.config, state.mesh
    dtype = product_dtype(config.compute_dtype, labels.shape[1])
    if config.loss == "full":
        return exact_loss_of(state, labels, dtype)
    axes, streams = vocab_axes(mesh), config.batch_size if stream_axes(mesh) else len(labels)  # a mesh may add some
    num_labels = streams * (labels.size // len(labels))
    config = dataclasses.replace(config, compute_dtype=dtype)
    labels = all_gather_invariant(labels.reshape(-1, 1), axes)
    values = _draw(state, key, labels)
    candidates, share = values.sampled_candidates, _share_of(values, axes)
    rows = ClassRows(
        *(take_local_rows(state.tables[name], labels, axes) for name in ("weights", "biases")),
        *(_candidate_rows(state.tables[name], candidates, axes) for name in ("weights", "biases")),
    )
    return SampledLoss(rows, labels, candidates, num_labels, share, config, mesh)


def _draw(state: TrainState, key: jax.Array, labels: jax.Array) -> SampledValues:
    """Draws candidates; a sampler that expects ids by decreasing frequency draws ranks."""
    config, order = state.config, state.order
    if state.unigrams is not None:
        arguments = (config.num_sampled, True, state.vocab_size, state.unigrams)
        return fixed_unigram_candidate_sampler(key, labels, *arguments)
    if config.sampler == "uniform":
        return uniform_candidate_sampler(key, labels, config.num_sampled, True, state.vocab_size)
    ranks = labels if order is None else order.ranks.at[labels].get(mode="fill", fill_value=-1)
    values = log_uniform_candidate_sampler(key, ranks, config.num_sampled, True, state.vocab_size)
    return values if order is None else values._replace(sampled_candidates=order.ids[values.sampled_candidates])


def _share_of(values: SampledValues, axes: Axes) -> SampledValues:
    """Returns the candidates of which a device computes the logits, -1 where there is none."""
    candidates, true_count, sampled_count = values
    candidates, sampled_count = _even(candidates, axes, -1), _even(sampled_count, axes, 1)
    return SampledValues(local_rows(candidates, axes), true_count, local_rows(sampled_count, axes))


def _candidate_rows(shard: jax.Array, candidates: jax.Array, axes: Axes) -> jax.Array:
    """Returns the rows of a device's share of the candidates, from the devices that have them."""
    return reduce_scatter(take_local_rows(shard, _even(candidates, axes, -1), axes), axes)


def _even(x: jax.Array, axes: Axes, value: int) -> jax.Array:
    """Pads an array to equal shares for all devices."""
    return jnp.pad(x, (0, -x.size % jax.lax.axis_size(axes)), constant_values=value) if axes else x
