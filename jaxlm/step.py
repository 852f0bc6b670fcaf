"""`train_step`: loss and gradients on the rows that a batch touches, row-sparse updates, everything in place."""

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxlm.batches import Batch, outputs_with_labels, reduce_losses
from jaxlm.candidate_sampling.samplers import (
    SampledValues,
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.config import ComputeDtype, TrainConfig
from jaxlm.cross_entropy import linear_cross_entropy
from jaxlm.errors import require
from jaxlm.losses import ClassRows, gather_rows, nce_loss_of_rows, sampled_softmax_loss_of_rows
from jaxlm.lstm import Carry
from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates, update_rows
from jaxlm.token_ids import Ids, check_ids
from jaxlm.train_state import TrainState, optimizer

Gradient = RowGradient | jax.Array


def train_step(
    state: TrainState, batch: Batch | tuple[Ids, Ids], learning_rate: jax.typing.ArrayLike
) -> tuple[TrainState, jax.Array]:
    """Runs one training step: loss and gradients on the touched rows, clipping, update in place.

    A step whose loss or gradient is not finite changes nothing but the counters of `state`: `step` and `skipped`.
    Ids on the host are checked; an id out of range in a JAX array makes the loss NaN and so skips the step.
    With loss "full" the gradient of the softmax rows is dense. Another learning rate does not compile anew.

    Args:
      state: donated; use only the returned one.
      batch: a `Batch`, or a pair of inputs and labels, each `[batch_size, sequence_length]` integer ids, where each
        label is the word after the input. The LSTM state carries over from the last batch, unless the batch
        says `starts_epoch`. Its `positions` and `weights` say which outputs have labels, and what each counts.
      learning_rate: scalar.

    Returns:
      The new state, and the training loss in nats, NaN if the step was skipped. A sampled loss is not
      comparable with an exact one.

    Raises:
      InputError: the shapes do not fit the state, or an id is out of range.
    """
    fits = isinstance(batch, tuple | list) and 2 <= len(batch) <= len(Batch._fields)
    require(fits, "batch", "a Batch, or a pair of inputs and labels", type(batch).__name__)
    return jit_train_step(state, _checked(state, Batch(*batch)), jnp.asarray(learning_rate, jnp.float32))


def _checked(state: TrainState, batch: Batch) -> Batch:
    vocab_size, batch_size = state.tables["biases"].shape[0], state.carry[0][0].shape[0]
    inputs = check_ids("inputs", batch.inputs, vocab_size, ndim=2)
    labels = check_ids("labels", batch.labels, vocab_size, ndim=2)
    positions, weights, source = batch.positions, batch.weights, "inputs"
    if positions is not None:
        positions, source = check_ids("positions", positions, inputs.shape[1], ndim=2), "positions"
    expected = inputs.shape if positions is None else positions.shape
    require(labels.shape == expected, "labels", f"the shape of the {source}, {expected}", labels.shape)
    if weights is not None:
        weights = jnp.asarray(weights, jnp.float32)
        require(weights.shape == expected, "weights", f"the shape of the labels, {expected}", weights.shape)
    fits = inputs.shape[0] == batch_size and inputs.shape[1] > 0
    require(fits, "inputs", f"shape [{batch_size}, sequence_length], as the state was made for", inputs.shape)
    return Batch(inputs, labels, jnp.asarray(batch.starts_epoch, bool), positions, weights)


@partial(jax.jit, donate_argnames="state")
def jit_train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, jax.Array]:
    """Runs `train_step` on checked arguments."""
    inputs, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    sampling_key, dropout_key = _keys(state)
    loss_function = _loss_function(state, sampling_key, labels)

    def batch_loss(dense: dict[str, Any], embedded: jax.Array, rows: Any) -> tuple[jax.Array, tuple[Carry, ...]]:
        model = nnx.merge(state.graphdef, state.tables, dense)
        dtype = _dtype(state.config, inputs)
        hidden, carry = model.hidden(embedded, _initial_carry(state, batch), dropout_key, dtype)
        return reduce_losses(batch, loss_function.losses(rows, outputs_with_labels(batch, hidden))), carry

    # for the exact loss, whose factors are float32; a processor has no such products of some sizes
    rounds = state.config.compute_dtype == "bfloat16" and jax.default_backend() != "cpu"
    with jax.default_matmul_precision("BF16_BF16_F32") if rounds else nullcontext():
        value_and_grad = jax.value_and_grad(batch_loss, argnums=(0, 1, 2), has_aux=True)
        embedded = state.model.embed(inputs)
        (loss, carry), (d_dense, d_embedded, d_rows) = value_and_grad(state.dense, embedded, loss_function.rows)
    embedding_gradient = RowGradient(inputs.reshape(-1), d_embedded.reshape(-1, d_embedded.shape[-1]))
    gradients = _combine(state.tables, embedding_gradient, loss_function.table_gradients(d_rows))
    new_state = _update(state, gradients | {"dense": d_dense}, loss, learning_rate, carry)
    return new_state, jnp.where(new_state.skipped[1] > 0, jnp.nan, loss)


@jax.jit
def exact_and_training_loss(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Computes the exact loss and the training loss of one batch with the same parameters, without dropout.

    Their difference is what sampling hides. If it grows, sample more classes.

    Args:
      state: not donated.
      batch: of ids.

    Returns:
      Two scalars in nats per word.
    """
    inputs, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    hidden, _ = state.model.hidden(state.model.embed(inputs), _initial_carry(state, batch))
    hidden = outputs_with_labels(batch, hidden)

    def loss(function: ExactLoss | SampledLoss) -> jax.Array:
        return reduce_losses(batch, function.losses(function.rows, hidden))

    return loss(_exact_loss(state, labels)), loss(_loss_function(state, _keys(state)[0], labels))


def _keys(state: TrainState) -> jax.Array:
    """Returns the sampling key and the dropout key of the step."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))


def _dtype(config: TrainConfig, words: jax.Array) -> ComputeDtype:
    """Returns the data type of factors for words `[batch_size, time]`.

    Float32 for a single time step: to XLA that is no loop, and it chooses layouts that a processor refuses in bfloat16.
    """
    return "float32" if words.shape[1] == 1 else config.compute_dtype


def _initial_carry(state: TrainState, batch: Batch) -> tuple[Carry, ...]:
    return jax.tree.map(lambda leaf: jnp.where(batch.starts_epoch, jnp.zeros_like(leaf), leaf), state.carry)


class ExactLoss(NamedTuple):
    """The exact softmax loss, a function of all rows."""

    rows: tuple[jax.Array, jax.Array]  # weights [V, D], biases [V]
    labels: jax.Array  # [batch_size, P]

    def losses(self, rows: Any, hidden: jax.Array) -> jax.Array:
        """Returns the loss of each output `[batch_size, P, D]`, given weights and biases."""
        return linear_cross_entropy(hidden, rows[0], self.labels, biases=rows[1])

    def table_gradients(self, d_rows: Any) -> dict[str, Gradient]:
        """Returns the gradient of each table."""
        return {"weights": d_rows[0], "biases": d_rows[1]}


class SampledLoss(NamedTuple):
    """A sampled loss, a function of the rows of the labels and the candidates."""

    rows: ClassRows
    labels: jax.Array  # [N, 1]
    values: SampledValues
    nce: bool
    dtype: ComputeDtype  # of the factors of the product

    def losses(self, rows: Any, hidden: jax.Array) -> jax.Array:
        """Returns the loss of each output `[batch_size, P, D]`, given gathered rows."""
        loss_of_rows = nce_loss_of_rows if self.nce else sampled_softmax_loss_of_rows
        return loss_of_rows(rows, self.labels, hidden.reshape(-1, hidden.shape[-1]), self.values, dtype=self.dtype)

    def table_gradients(self, d_rows: Any) -> dict[str, Gradient]:
        """Returns the gradient of each table, in the touched rows alone; rows may repeat."""
        indices = jnp.concatenate([self.labels[:, 0], self.values.sampled_candidates])
        weights = jnp.concatenate([d_rows.true_weights[:, 0], d_rows.sampled_weights])
        biases = jnp.concatenate([d_rows.true_biases[:, 0], d_rows.sampled_biases])
        return {"weights": RowGradient(indices, weights), "biases": RowGradient(indices, biases)}


def _exact_loss(state: TrainState, labels: jax.Array) -> ExactLoss:
    return ExactLoss((state.tables["weights"], state.tables["biases"]), labels)


def _loss_function(state: TrainState, key: jax.Array, labels: jax.Array) -> ExactLoss | SampledLoss:
    """Returns the loss of the config, for sampled ones after drawing candidates and gathering rows."""
    config, weights, biases = state.config, state.tables["weights"], state.tables["biases"]
    if config.loss == "full":
        return _exact_loss(state, labels)
    dtype, labels = _dtype(config, labels), labels.reshape(-1, 1)
    arguments = (key, labels, config.num_sampled, True, weights.shape[0])
    if state.unigrams is not None:
        values = fixed_unigram_candidate_sampler(*arguments, state.unigrams)
    elif config.sampler == "uniform":
        values = uniform_candidate_sampler(*arguments)
    else:
        values = log_uniform_candidate_sampler(*arguments)
    rows = gather_rows(weights, biases, labels, values.sampled_candidates)
    return SampledLoss(rows, labels, values, config.loss == "nce", dtype)


def _combine(
    tables: dict[str, jax.Array], embedding: RowGradient, gradients: dict[str, Gradient]
) -> dict[str, Gradient]:
    """Returns the gradient of each table, with distinct rows; tied rows have gradients from both sides."""
    if "embedding" in tables:
        gradients = gradients | {"embedding": embedding}
    else:
        gradients = gradients | {"weights": _add_rows(gradients["weights"], embedding)}
    return {
        name: sum_duplicates(gradient, tables[name].shape[0]) if isinstance(gradient, RowGradient) else gradient
        for name, gradient in gradients.items()
    }


def _add_rows(gradient: Gradient, rows: RowGradient) -> Gradient:
    if isinstance(gradient, RowGradient):
        return RowGradient(*(jnp.concatenate(pair) for pair in zip(gradient, rows, strict=True)))
    return gradient.at[rows.indices].add(rows.values)


def _update(
    state: TrainState, gradients: dict[str, Any], loss: jax.Array, learning_rate: jax.Array, carry: tuple[Carry, ...]
) -> TrainState:
    """Clips all gradients by their global norm, and updates every table and all dense parameters.

    An embedding that is not trained stays as it is. If the loss or the norm is not finite, nothing is updated. No
    table is copied for that: the row updates are sent out of range instead.
    """
    if not state.config.train_embedding:
        gradients.pop("embedding", None)
    if not state.model.config.softmax_bias:  # its biases are zeros, and stay so
        gradients.pop("biases")
    norm = global_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    gradients = _clip(gradients, norm, state.config)
    tx = optimizer(state.config, learning_rate)
    params: dict[str, Any] = state.tables | {"dense": state.dense}
    opt_state = dict(state.opt_state)
    for name, gradient in gradients.items():
        param, before = params[name], (params[name], opt_state[name])
        if isinstance(gradient, RowGradient):
            indices = jnp.where(finite, gradient.indices, param.shape[0] + jnp.arange(gradient.indices.size))
            after = update_rows(tx, *before, gradient._replace(indices=indices.astype(jnp.int32)))
            # what is left to undo are scalars, such as Adam's count
            params[name], opt_state[name] = jax.tree.map(partial(_select_scalar, finite), after, before)
        else:
            params[name], opt_state[name] = _apply_if(finite, tx, gradient, *before)
    skipped = jnp.where(finite, state.skipped.at[1].set(0), state.skipped + 1)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tables={name: params[name] for name in state.tables},
        dense=params["dense"],
        opt_state=opt_state,
        carry=jax.tree.map(partial(jnp.where, finite), carry, state.carry),
        skipped=skipped,
    )


def _apply_if(
    finite: jax.Array, tx: optax.GradientTransformation, gradient: Any, param: Any, opt_state: optax.OptState
) -> tuple[Any, optax.OptState]:
    """Returns the next parameters and optimizer state, or the given ones if the gradient is not finite."""

    def apply(param: Any, opt_state: optax.OptState) -> tuple[Any, optax.OptState]:
        updates, opt_state = tx.update(gradient, opt_state, param)
        return optax.apply_updates(param, updates), opt_state

    def choose(*before: Any) -> tuple[Any, optax.OptState]:
        # selecting each number reads all of them once more, which on a processor takes longer than to branch
        return jax.lax.cond(finite, apply, lambda *old: old, *before)

    def select(*before: Any) -> tuple[Any, optax.OptState]:
        # an accelerator would ask its host which branch to take
        return jax.tree.map(partial(jnp.where, finite), apply(*before), before)

    return jax.lax.platform_dependent(param, opt_state, cpu=choose, default=select)


def _select_scalar(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return new if new.ndim else jnp.where(condition, new, old)


def _clip(gradients: dict[str, Any], norm: jax.Array, config: TrainConfig) -> dict[str, Any]:
    """Limits the norm of all gradients, which is given, or of each by itself."""
    if not config.clip_norm:
        return gradients

    def clip(gradient: Any) -> Any:
        scale = jnp.minimum(1.0, config.clip_norm / (global_norm(gradient) if config.clip_each else norm))
        if isinstance(gradient, RowGradient):  # its indices are not numbers to scale
            return gradient._replace(values=gradient.values * scale)
        return gradient * scale

    return jax.tree.map(clip, gradients, is_leaf=lambda leaf: isinstance(leaf, RowGradient))
