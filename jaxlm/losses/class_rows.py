"""Sampled losses on the softmax rows that they read, to differentiate with respect to these rows alone."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.candidate_sampling.accidental_hits import last_occurrences
from jaxlm.candidate_sampling.samplers import SampledValues
from jaxlm.config import ComputeDtype
from jaxlm.losses.blocks import FLOAT_MIN
from jaxlm.matmul import matmul, transposed
from jaxlm.parallel.collectives import pmax, psum
from jaxlm.parallel.mesh import Axes
from jaxlm.row_updates import take_rows

Table = jax.Array | Sequence[jax.Array]  # [V, ...], or contiguous shards of its rows


class ClassRows(NamedTuple):
    """The softmax rows that a sampled loss reads: those of the labels and those of the candidates."""

    true_weights: jax.Array  # [N, num_true, D]
    true_biases: jax.Array  # [N, num_true]
    sampled_weights: jax.Array  # [S, D]
    sampled_biases: jax.Array  # [S]


def gather_rows(weights: Table, biases: Table, labels: jax.Array, candidates: jax.Array) -> ClassRows:
    """Gathers rows of `weights` `[V, D]` and `biases` `[V]` for labels `[N, num_true]` and candidates `[S]`."""
    return ClassRows(
        _lookup(weights, labels), _lookup(biases, labels), _lookup(weights, candidates), _lookup(biases, candidates)
    )


def _lookup(table: Table, ids: jax.Array) -> jax.Array:
    """Gathers rows of a table, or of shards that hold its rows one after the other."""
    if not isinstance(table, Sequence):
        return take_rows(jnp.asarray(table), ids)
    rows, start = jnp.full((*ids.shape, *table[0].shape[1:]), jnp.nan, table[0].dtype), 0
    for shard in table:
        inside = (ids >= start) & (ids < start + shard.shape[0])
        found = take_rows(shard, jnp.where(inside, ids - start, 0))
        rows = jnp.where(jnp.expand_dims(inside, range(ids.ndim, rows.ndim)), found, rows)
        start += shard.shape[0]
    return rows


def _logits(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    values: SampledValues,
    remove_accidental_hits: bool,
    subtract_log_q: bool,
    dtype: ComputeDtype,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 logits of the true classes `[N, num_true]` and of the candidates `[N, S]`."""
    true_products = inputs[:, None, :].astype(jnp.float32) * rows.true_weights.astype(jnp.float32)
    true_logits = true_products.sum(axis=-1)
    if dtype == "bfloat16":
        sampled_logits = matmul(inputs, transposed(rows.sampled_weights), dtype)
    else:
        sampled_logits = jnp.matmul(inputs, rows.sampled_weights.T, preferred_element_type=jnp.float32)
    true_logits = psum(true_logits + rows.true_biases.astype(jnp.float32), axes)
    sampled_biases = rows.sampled_biases.astype(jnp.float32)
    if subtract_log_q:
        true_logits -= jnp.log(values.true_expected_count)
        sampled_biases -= jnp.log(values.sampled_expected_count)
    sampled_logits += sampled_biases[None, :]
    if remove_accidental_hits:
        candidates = jnp.where(last_occurrences(values.sampled_candidates), values.sampled_candidates, -1)
        hits = jnp.any(labels[:, :, None] == candidates[None, None, :], axis=1)
        sampled_logits = jnp.where(hits, FLOAT_MIN, sampled_logits)
    if axes:
        sampled_logits = jnp.where(values.sampled_candidates[None, :] < 0, FLOAT_MIN, sampled_logits)
    return true_logits, sampled_logits


def sampled_softmax_loss_of_rows(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    sampled_values: SampledValues,
    remove_accidental_hits: bool = True,
    subtract_log_q: bool = True,
    dtype: ComputeDtype = "float32",
    axes: Axes = (),
) -> jax.Array:
    """Computes `sampled_softmax_loss` on gathered rows, to differentiate with respect to them alone.

    Args:
      rows: `ClassRows` of the labels and candidates.
      labels: `[N, num_true]` integer.
      inputs: `[N, D]` float.
      sampled_values: result of a candidate sampler.
      remove_accidental_hits, subtract_log_q: as in `sampled_softmax_loss`.
      dtype: data type of the operands of the product with the candidates.
      axes: axes of a mesh along which the distinct candidates are sharded, with -1 as padding; rows of labels of other
        shards are zeros.

    Returns:
      `[N]` float32, the loss of each example in nats.
    """
    options = remove_accidental_hits, subtract_log_q, dtype, axes
    true_logits, sampled_logits = _logits(rows, labels, inputs, sampled_values, *options)
    # subtract the highest logit first, as TensorFlow does: the difference of two large numbers has few digits
    highest = pmax(jnp.maximum(true_logits.max(axis=1), sampled_logits.max(axis=1)), axes)
    true_logits, sampled_logits = true_logits - highest[:, None], sampled_logits - highest[:, None]
    total = jnp.exp(true_logits).sum(axis=1) + psum(jnp.exp(sampled_logits).sum(axis=1), axes)
    return jnp.log(total) - jnp.mean(true_logits, axis=1)


def nce_loss_of_rows(
    rows: ClassRows,
    labels: jax.Array,
    inputs: jax.Array,
    sampled_values: SampledValues,
    remove_accidental_hits: bool = False,
    subtract_log_q: bool = True,
    dtype: ComputeDtype = "float32",
    axes: Axes = (),
) -> jax.Array:
    """`nce_loss` on gathered rows, with the arguments and the result of `sampled_softmax_loss_of_rows`."""
    options = remove_accidental_hits, subtract_log_q, dtype, axes
    true_logits, sampled_logits = _logits(rows, labels, inputs, sampled_values, *options)
    true_losses = jax.nn.softplus(true_logits) - true_logits / labels.shape[1]
    return true_losses.sum(axis=1) + psum(jax.nn.softplus(sampled_logits).sum(axis=1), axes)
