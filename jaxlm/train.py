"""`TrainState` and `train_step`: sampled softmax on gathered rows, row-sparse updates, everything in place."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxlm.config import TrainConfig, require
from jaxlm.losses import ClassRows, gather_rows, sampled_softmax_loss_of_rows, softmax_loss
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel, RowParam
from jaxlm.row_updates import RowGradient, global_norm, sum_duplicates, update_rows
from jaxlm.sampling import log_uniform_candidate_sampler


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a training step reads and writes; donated to it, so keep no other reference.

    Attributes:
      step: int32 scalar, steps done.
      tables: `embedding` `[V, E]`, `weights` `[V, H]`, `biases` `[V]`, updated by rows.
      dense: the LSTM parameters, updated by Optax.
      opt_state: Optax states of `dense` and of each table.
      carry: LSTM state at the end of the last batch.
      key: `jax.random.key`; step n draws from `fold_in(key, n)`.
      graphdef: structure of the `LanguageModel`.
      config: the `TrainConfig`.
    """

    step: jax.Array
    tables: dict[str, jax.Array]
    dense: dict[str, Any]
    opt_state: dict[str, Any]
    carry: tuple[Carry, ...]
    key: jax.Array
    graphdef: nnx.GraphDef = field(metadata={"static": True})
    config: TrainConfig = field(metadata={"static": True})

    @classmethod
    def create(cls, model: LanguageModel, config: TrainConfig) -> "TrainState":
        """Makes the state before the first step; the model's arrays become the state's.

        Raises:
          InputError: `num_sampled` is larger than the model's vocabulary.
        """
        vocab_size = model.config.vocab_size
        require(config.num_sampled <= vocab_size, "num_sampled", f"at most vocab_size={vocab_size}", config.num_sampled)
        graphdef, *params = nnx.split(model, RowParam, nnx.Param)
        tables, dense = map(nnx.to_pure_dict, params)
        transform = optimizer(config)
        opt_state = {name: transform.init(table) for name, table in tables.items()}
        opt_state["dense"] = transform.init(dense)
        carry = model.initial_carry(config.batch_size)
        return cls(jnp.int32(0), tables, dense, opt_state, carry, jax.random.key(config.seed), graphdef, config)

    @property
    def model(self) -> LanguageModel:
        """The model with the present parameters; stale once the state is donated to the next step."""
        return nnx.merge(self.graphdef, self.tables, self.dense)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the Optax transformation of dense parameters and rows alike, the learning rate left out."""
    if config.optimizer == "adagrad":
        return optax.scale_by_rss(config.initial_accumulator_value)
    return optax.scale_by_adam() if config.optimizer == "adam" else optax.identity()


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

    With `num_sampled` 0 the loss is the exact softmax and the gradient of the softmax rows is dense.

    Args:
      state: donated.
      inputs: `[batch_size, sequence_length]` integer ids.
      labels: `[batch_size, sequence_length]` integer ids, each the word after the input.
      learning_rate: scalar.

    Returns:
      The new state, and the mean training loss in nats: with sampling, not comparable with an exact loss.
    """
    config, tables = state.config, state.tables
    sampling_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    true_classes = labels.reshape(-1, 1)
    if config.num_sampled:
        values = log_uniform_candidate_sampler(
            sampling_key, true_classes, config.num_sampled, True, tables["weights"].shape[0]
        )
        rows: ClassRows | tuple[jax.Array, jax.Array] = gather_rows(
            tables["weights"], tables["biases"], true_classes, values.sampled_candidates
        )
    else:
        rows = (tables["weights"], tables["biases"])

    def mean_loss(
        dense: dict[str, Any], embedded: jax.Array, rows: ClassRows | tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[Carry, ...]]:
        model = nnx.merge(state.graphdef, tables, dense)
        hidden, carry = model.hidden(embedded, state.carry, dropout_key)
        hidden = hidden.reshape(-1, hidden.shape[-1])  # [batch_size * sequence_length, hidden_size]
        if isinstance(rows, ClassRows):
            losses = sampled_softmax_loss_of_rows(rows, true_classes, hidden, values)
        else:
            losses = softmax_loss(*rows, labels.reshape(-1), hidden)
        return losses.mean(), carry

    (loss, carry), (d_dense, d_embedded, d_rows) = jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)(
        state.dense, tables["embedding"][inputs], rows
    )
    gradients = {"dense": d_dense, "embedding": _rows(inputs, d_embedded, tables["embedding"])}
    if isinstance(d_rows, ClassRows):
        classes = jnp.concatenate([labels.reshape(-1), values.sampled_candidates])
        weights = jnp.concatenate([d_rows.true_weights[:, 0], d_rows.sampled_weights])
        gradients["weights"] = _rows(classes, weights, tables["weights"])
        biases = jnp.concatenate([d_rows.true_biases[:, 0], d_rows.sampled_biases])
        gradients["biases"] = _rows(classes, biases, tables["biases"])
    else:
        gradients["weights"], gradients["biases"] = d_rows
    return _update(state, gradients, learning_rate, carry), loss


def _rows(indices: jax.Array, values: jax.Array, table: jax.Array) -> RowGradient:
    gradient = RowGradient(indices.reshape(-1), values.reshape(-1, *table.shape[1:]))
    return sum_duplicates(gradient, table.shape[0])


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
    return TrainState(state.step + 1, tables, dense, opt_state, carry, state.key, state.graphdef, config)
