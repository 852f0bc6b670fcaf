"""The losses of a batch without dropout, exact and sampled as in the next step, and statistics of its labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.data.batches import Batch, batch_specs, outputs_with_labels, reduce_losses
from jaxlm.losses.word_statistics import local_word_statistics
from jaxlm.matmul import in_float32
from jaxlm.parallel.collectives import all_gather_invariant, nan_unless_valid, on_mesh
from jaxlm.parallel.mesh import EVERYWHERE, data_axes, tree_specs, vocab_axes
from jaxlm.training.body import BodyOutputs
from jaxlm.training.objectives import ExactLoss, SampledLoss, exact_loss_of, training_loss_of
from jaxlm.training.state import TrainState
from jaxlm.training.step import id_arrays, initial_carry, look_up, step_keys


@jax.jit
@in_float32
def exact_batch_loss(state: TrainState, batch: Batch) -> jax.Array:
    """Computes the exact loss of a batch, as from `shard_batch`: mean(weight * loss) in nats + the body's loss."""
    return _on_mesh(_exact_batch_loss, state, batch, EVERYWHERE)


def _exact_batch_loss(state: TrainState, batch: Batch) -> jax.Array:
    function = exact_loss_of(state, jnp.asarray(batch.labels))
    outputs = evaluation_outputs(state, batch)
    loss = reduce_losses(batch, function.losses(function.rows, outputs.hidden), state.mesh) + outputs.loss
    ids = (*id_arrays(batch), jnp.asarray(batch.labels))
    return nan_unless_valid(loss, ids, state.vocab_size, state.mesh)


@jax.jit
@in_float32
def batch_statistics(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the log-probabilities and ranks of the labels of one batch, and the body's loss; see `word_statistics`.

    Args:
      state: not donated.
      batch: of ids, as from `shard_batch`.

    Returns:
      `[N]` float32 and `[N]` int32, for all labels in their order, and on a mesh for its padding after them; and the
      body's loss, such as its regularizers.
    """
    out = PartitionSpec(data_axes(state.mesh) or None)
    return _on_mesh(_batch_statistics, state, batch, (out, out, EVERYWHERE))


def _batch_statistics(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    axes, weights, biases = vocab_axes(state.mesh), state.tables["weights"], state.tables["biases"]
    labels = all_gather_invariant(jnp.ravel(batch.labels), axes)
    outputs = evaluation_outputs(state, batch)
    found = local_word_statistics(outputs.hidden, weights, labels, biases, state.vocab_size, axes)
    return found[0], found[1], jnp.float32(outputs.loss)


@jax.jit
@in_float32
def exact_and_training_loss(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Computes the exact loss and the training loss of a batch, as from `shard_batch`, in nats and without dropout.

    Their difference is the sampling gap. If it grows, sample more classes. With loss "full", only the rounding of
    operands differs.
    """
    return _on_mesh(_exact_and_training_loss, state, batch, EVERYWHERE)


def _exact_and_training_loss(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    labels, outputs = jnp.asarray(batch.labels), evaluation_outputs(state, batch)

    def loss(function: ExactLoss | SampledLoss) -> jax.Array:
        return reduce_losses(batch, function.losses(function.rows, outputs.hidden), state.mesh) + outputs.loss

    return loss(exact_loss_of(state, labels)), loss(training_loss_of(state, step_keys(state)[0], labels))


def _on_mesh(function: Callable, state: TrainState, batch: Batch, out_specs: Any) -> Any:
    """Applies a function to the shards of a state and a batch on each device."""
    specs = tree_specs(state, state.mesh), batch_specs(batch, state.mesh)
    return on_mesh(function, state.mesh, specs, out_specs)(state, batch)


def evaluation_outputs(state: TrainState, batch: Batch) -> BodyOutputs:
    """Returns the outputs of the body without dropout, its hidden ones `[N, D]` with labels; inside of `jax.jit`."""
    rows, carry = look_up(state, id_arrays(batch)), initial_carry(state, batch)
    outputs = state.body(state.dense, state.other, rows, batch.features, carry, None)
    return outputs._replace(hidden=outputs_with_labels(batch, outputs.hidden, state.mesh))
