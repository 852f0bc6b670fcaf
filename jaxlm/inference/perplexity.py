"""Exact evaluation: full softmax over all classes, LSTM state carried, logits in blocks of classes."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike
from tqdm import tqdm

from jaxlm.config_checks import require_integer
from jaxlm.data.batches import (
    Batch,
    batch_specs,
    evaluation_batches,
    outputs_with_labels,
    place_streams,
    reduce_losses,
    shard_batch,
)
from jaxlm.errors import require
from jaxlm.losses.exact import exact_losses
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import Carry
from jaxlm.model.params import split_params
from jaxlm.parallel.collectives import all_gather_invariant, lookup, nan_unless_valid, on_mesh
from jaxlm.parallel.mesh import EVERYWHERE, row_spec, stream_spec, vocab_axes
from jaxlm.token_ids import Ids, check_ids

DIVERGED = 2.0  # nats above the unigram model
BATCH_SIZE, SEQUENCE_LENGTH = 32, 35  # of an evaluation


class Evaluation(NamedTuple):
    """The exact mean loss on a text."""

    loss: float  # nats per word
    num_tokens: int  # words it is the mean of

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity_of(self.loss)


def perplexity_of(loss: float) -> float:
    """Returns exp(loss): infinity from a loss of 700 on, NaN for NaN."""
    return math.inf if loss >= 700 else math.exp(loss)


def evaluate(
    model: LanguageModel,
    tokens: jax.Array | ArrayLike,
    *,
    batch_size: int = BATCH_SIZE,
    sequence_length: int = SEQUENCE_LENGTH,
    max_tokens: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Computes the exact loss of a model on a text: full softmax in float32, summed in double.

    Args:
      model: the language model.
      tokens: `[N]` integer ids, at least two. Each but the first is predicted once.
      batch_size: number of contiguous streams read in parallel, each from the zero state.
      sequence_length: time steps of a batch. The state carries over, so this does not affect the result.
      max_tokens: number of words, spread evenly over the text, rounded up to a multiple of `batch_size`; 0 for all.
      progress: whether to show a progress bar on a terminal.

    Returns:
      An `Evaluation`.

    Raises:
      InputError: `tokens` are not a text, an id on the host is out of range, or an argument is out of range.

    >>> from jaxlm.config import ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=50, hidden_size=16), rngs=nnx.Rngs(0))
    >>> evaluate(model, [3, 1, 4, 1, 5]).num_tokens
    4
    """
    ids = check_ids("tokens", tokens, model.config.vocab_size)
    require(ids.size >= 2, "tokens", "at least two ids", ids.size)
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        require_integer(name, value, 1)
    require_integer("max_tokens", max_tokens, 0)
    batches, carry = _read(model, ids, batch_size, sequence_length, max_tokens)
    graphdef, *params = split_params(model)
    total, count = 0.0, 0
    expected = min(max_tokens or ids.size, ids.size - 1)
    with tqdm(total=expected, desc="evaluating", unit=" words", disable=None if progress else True, leave=False) as bar:
        for batch in batches:
            loss, carry = exact_loss(graphdef, params, shard_batch(batch, model.mesh), carry)
            total += float(loss) * batch.labels.size
            words = int(np.asarray(batch.weights).sum())
            count += words
            bar.update(words)
    return Evaluation(total / count, count)


def lower_evaluation(model: LanguageModel, ids: np.ndarray, max_tokens: int) -> jax.stages.Lowered:
    """Returns the program of an evaluation with the default sizes of batches, to compile it ahead of time.

    `model` may have the shape, type and sharding of each array instead of the array. The other arguments are those of
    `evaluate`.
    """
    batches, carry = _read(model, ids, BATCH_SIZE, SEQUENCE_LENGTH, max_tokens)
    graphdef, *params = split_params(model)
    return exact_loss.lower(graphdef, params, shard_batch(next(batches), model.mesh), carry)


def _read(
    model: LanguageModel, ids: Ids, batch_size: int, sequence_length: int, max_tokens: int
) -> tuple[Iterator[Batch], tuple[Carry, ...]]:
    """Returns the batches of a text on the host, and the carry before the first one."""
    batch_size = min(batch_size, ids.size - 1)
    batches = evaluation_batches(ids, batch_size, sequence_length, max_tokens)
    carry = jax.tree.map(partial(place_streams, mesh=model.mesh), model.initial_carry(batch_size))
    return batches, carry


@partial(jax.jit, static_argnums=0)
@in_float32
def exact_loss(
    graphdef: nnx.GraphDef, params: Any, batch: Batch, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    """Returns the exact loss of a batch from `shard_batch`, weighted by its weights, and the carry after it."""
    mesh = nnx.merge(graphdef, *params).mesh
    streams = stream_spec(mesh)
    specs = [row_spec(mesh), EVERYWHERE], batch_specs(batch, mesh), streams
    return on_mesh(partial(_exact_loss, graphdef), mesh, specs, (EVERYWHERE, streams))(params, batch, carry)


def _exact_loss(
    graphdef: nnx.GraphDef, params: Any, batch: Batch, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, *params)
    mesh, axes, vocab_size = model.mesh, vocab_axes(model.mesh), model.config.vocab_size
    inputs, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    hidden, carry = model.hidden(lookup(model.input_rows, inputs, axes), carry)
    hidden, classes = outputs_with_labels(batch, hidden, mesh), all_gather_invariant(labels.reshape(-1), axes)
    losses = exact_losses(hidden, model.weights[...], classes, model.biases[...], vocab_size, axes)
    return nan_unless_valid(reduce_losses(batch, losses, mesh), (inputs, labels), vocab_size, mesh), carry
