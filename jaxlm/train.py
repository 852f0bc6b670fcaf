"""`TrainState` and `train_step`: sampled softmax on gathered rows, row-sparse updates, everything in place."""

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlm.config import TrainConfig, require
from jaxlm.losses import ClassRows, gather_rows, nce_loss_of_rows, sampled_softmax_loss_of_rows
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel, RowParam
from jaxlm.proposals import UnigramTable, unigram_table
from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates, update_rows
from jaxlm.sampling import (
    SampledValues,
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.softmax import softmax_loss

Rows = ClassRows | tuple[jax.Array, jax.Array]  # gathered rows, or whole weights and biases for the exact loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a training step reads and writes; donated to it, so keep no other reference.

    Attributes:
      step: int32 scalar, steps done.
      tables: `embedding` `[V, E]` unless tied, `weights` `[V, softmax_size]`, `biases` `[V]`, updated by rows.
      dense: the LSTM's and the bottleneck's parameters, updated by Optax.
      opt_state: Optax states of `dense` and of each table.
      carry: LSTM state at the end of the last batch.
      key: `jax.random.key`; step n draws from `fold_in(key, n)`.
      unigrams: the table of the unigram sampler, or None.
      graphdef: structure of the `LanguageModel`.
      config: the `TrainConfig`.
    """

    step: jax.Array
    tables: dict[str, jax.Array]
    dense: dict[str, Any]
    opt_state: dict[str, Any]
    carry: tuple[Carry, ...]
    key: jax.Array
    unigrams: UnigramTable | None
    graphdef: nnx.GraphDef = field(metadata={"static": True})
    config: TrainConfig = field(metadata={"static": True})

    @classmethod
    def create(cls, model: LanguageModel, config: TrainConfig, unigrams: np.ndarray | None = None) -> "TrainState":
        """Makes the state before the first step; the model's arrays become the state's.

        Args:
          model: given away.
          config: how it is trained.
          unigrams: `[vocab_size]` counts or probabilities of the classes; the unigram sampler needs them.

        Raises:
          InputError: `num_sampled` is larger than the model's vocabulary, or `unigrams` do not fit it.
        """
        vocab_size, table = model.config.vocab_size, None
        if not config.exact:
            fits = config.num_sampled <= vocab_size
            require(fits, "num_sampled", f"at most vocab_size={vocab_size}", config.num_sampled)
            if config.sampler == "unigram":
                unigrams = np.zeros(0) if unigrams is None else unigrams
                require(unigrams.shape == (vocab_size,), "unigrams", f"counts of shape ({vocab_size},)", unigrams.shape)
                table = unigram_table(unigrams)
        graphdef, *params = nnx.split(model, RowParam, nnx.Param)
        tables, dense = map(nnx.to_pure_dict, params)
        opt_state = initial_opt_state(tables, dense, config)
        carry = model.initial_carry(config.batch_size)
        key = jax.random.key(config.seed)
        return cls(jnp.int32(0), tables, dense, opt_state, carry, key, table, graphdef, config)

    @property
    def model(self) -> LanguageModel:
        """The model with the present parameters; stale once the state is donated to the next step."""
        return nnx.merge(self.graphdef, self.tables, self.dense)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the Optax transformation of dense parameters and rows alike, the learning rate left out."""
    if config.optimizer == "adagrad":
        return optax.scale_by_rss(config.initial_accumulator_value)
    return optax.scale_by_adam() if config.optimizer == "adam" else optax.identity()


def initial_opt_state(tables: dict[str, jax.Array], dense: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Returns the Optax state of each table, by its name, and of the dense parameters, "dense", before any step."""
    transform = optimizer(config)
    return {name: transform.init(table) for name, table in tables.items()} | {"dense": transform.init(dense)}


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of a step: linear warm-up, constant, linear decay to 0.

    Args:
      config: with `learning_rate`, `warmup_steps` and `decay_fraction`.
      step: steps done, from 0.
      total_steps: length of the training; 0 where it is not known yet (no decay).
    """
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = config.decay_fraction * total_steps
    return rate * min(1.0, max(0.0, total_steps - step) / decay_steps) if decay_steps else rate


@partial(jax.jit, donate_argnames="state")
def train_step(
    state: TrainState, inputs: jax.Array, labels: jax.Array, learning_rate: jax.Array | float
) -> tuple[TrainState, jax.Array]:
    """Does one step: loss and gradients on the touched rows, clipping, update in place.

    With the exact loss the gradient of the softmax rows is dense.

    Args:
      state: donated.
      inputs: `[batch_size, sequence_length]` integer ids.
      labels: `[batch_size, sequence_length]` integer ids, each the word after the input.
      learning_rate: scalar.

    Returns:
      The new state, and the mean training loss in nats: with sampling, not comparable with an exact loss.
    """
    tables = state.tables
    sampling_key, dropout_key = _keys(state)
    rows, values = _class_rows(state, sampling_key, labels)

    def mean_loss(dense: dict[str, Any], embedded: jax.Array, rows: Rows) -> tuple[jax.Array, tuple[Carry, ...]]:
        model = nnx.merge(state.graphdef, tables, dense)
        hidden, carry = model.hidden(embedded, state.carry, dropout_key)
        return _mean_loss(state.config, rows, values, labels, hidden), carry

    bfloat16 = state.config.compute_dtype == "bfloat16"
    with jax.default_matmul_precision("BF16_BF16_F32") if bfloat16 else nullcontext():
        (loss, carry), (d_dense, d_embedded, d_rows) = jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)(
            state.dense, state.model.embed(inputs), rows
        )
    gradients = _table_gradients(tables, inputs, d_embedded, labels, d_rows, values) | {"dense": d_dense}
    return _update(state, gradients, learning_rate, carry), loss


@jax.jit
def exact_and_training_loss(state: TrainState, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the exact loss and the training loss of one batch with the same parameters, nothing dropped.

    Their difference is what sampling hides: where it grows, more classes should be sampled.

    Args:
      state: not donated.
      inputs: `[batch_size, sequence_length]` integer ids.
      labels: `[batch_size, sequence_length]` integer ids.

    Returns:
      Two scalars in nats per word.
    """
    hidden, _ = state.model.hidden(state.model.embed(inputs), state.carry)
    rows, values = _class_rows(state, _keys(state)[0], labels)
    exact = softmax_loss(
        state.tables["weights"], state.tables["biases"], labels.reshape(-1), hidden.reshape(-1, hidden.shape[-1])
    )
    return exact.mean(), _mean_loss(state.config, rows, values, labels, hidden)


def _keys(state: TrainState) -> jax.Array:
    """The sampling and the dropout key of the step."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))


def _class_rows(state: TrainState, key: jax.Array, labels: jax.Array) -> tuple[Rows, SampledValues | None]:
    """Draws candidates and gathers their rows and those of the labels; all rows and None for the exact loss."""
    config, weights, biases = state.config, state.tables["weights"], state.tables["biases"]
    if config.exact:
        return (weights, biases), None
    labels = labels.reshape(-1, 1)
    arguments = (key, labels, config.num_sampled, True, weights.shape[0])
    if state.unigrams is not None:
        values = fixed_unigram_candidate_sampler(*arguments, state.unigrams)
    elif config.sampler == "uniform":
        values = uniform_candidate_sampler(*arguments)
    else:
        values = log_uniform_candidate_sampler(*arguments)
    return gather_rows(weights, biases, labels, values.sampled_candidates), values


def _mean_loss(
    config: TrainConfig, rows: Rows, values: SampledValues | None, labels: jax.Array, hidden: jax.Array
) -> jax.Array:
    hidden = hidden.reshape(-1, hidden.shape[-1])  # [batch_size * sequence_length, hidden_size]
    if values is None or not isinstance(rows, ClassRows):
        return softmax_loss(rows[0], rows[1], labels.reshape(-1), hidden).mean()
    loss_of_rows = nce_loss_of_rows if config.loss == "nce" else sampled_softmax_loss_of_rows
    return loss_of_rows(rows, labels.reshape(-1, 1), hidden, values).mean()


def _table_gradients(
    tables: dict[str, jax.Array],
    inputs: jax.Array,
    d_embedded: jax.Array,
    labels: jax.Array,
    d_rows: Rows,
    values: SampledValues | None,
) -> dict[str, Any]:
    """Returns the gradient of each table: of its rows where few are touched; tied rows have one from each side."""
    inputs = inputs.reshape(-1)
    d_embedded = d_embedded.reshape(-1, d_embedded.shape[-1])
    gradients: dict[str, Any] = {}
    tied = "embedding" not in tables
    if not tied:
        gradients["embedding"] = _rows([inputs], [d_embedded], tables["embedding"])
    if values is not None and isinstance(d_rows, ClassRows):
        classes = [labels.reshape(-1), values.sampled_candidates]
        weights = [d_rows.true_weights[:, 0], d_rows.sampled_weights]
        biases = [d_rows.true_biases[:, 0], d_rows.sampled_biases]
        gradients["biases"] = _rows(classes, biases, tables["biases"])
        classes, weights = (classes + [inputs], weights + [d_embedded]) if tied else (classes, weights)
        gradients["weights"] = _rows(classes, weights, tables["weights"])
    else:
        gradients["weights"], gradients["biases"] = d_rows[0], d_rows[1]
        if tied:
            gradients["weights"] = gradients["weights"].at[inputs].add(d_embedded)
    return gradients


def _rows(indices: list[jax.Array], values: list[jax.Array], table: jax.Array) -> RowGradient:
    return sum_duplicates(RowGradient(jnp.concatenate(indices), jnp.concatenate(values)), table.shape[0])


def _update(
    state: TrainState,
    gradients: dict[str, Any],
    learning_rate: jax.Array | float,
    carry: tuple[Carry, ...],
) -> TrainState:
    """Clips all gradients by their common norm and updates every table and dense parameter."""
    config, transform = state.config, optimizer(state.config)
    scale: jax.Array | float = 1.0
    if config.clip_norm:
        scale = jnp.minimum(1.0, config.clip_norm / global_norm(gradients))
    tables, opt_state = {}, {}
    for name, table in state.tables.items():
        gradient = gradients[name]
        if isinstance(gradient, RowGradient):
            gradient = gradient._replace(values=gradient.values * scale)
            tables[name], opt_state[name] = update_rows(
                transform, learning_rate, table, state.opt_state[name], gradient
            )
        else:
            updates, opt_state[name] = transform.update(gradient * scale, state.opt_state[name])
            tables[name] = table - learning_rate * updates
    d_dense = jax.tree.map(lambda leaf: leaf * scale, gradients["dense"])
    updates, opt_state["dense"] = transform.update(d_dense, state.opt_state["dense"])
    dense = jax.tree.map(lambda leaf, update: leaf - learning_rate * update, state.dense, updates)
    return dataclasses.replace(state, step=state.step + 1, tables=tables, dense=dense, opt_state=opt_state, carry=carry)
