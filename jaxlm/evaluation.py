"""Exact evaluation: full softmax over all classes, LSTM state carried, no `[N, V]` logits anywhere."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jaxlm.data import evaluation_batches
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel
from jaxlm.softmax import softmax_loss


class Evaluation(NamedTuple):
    """The exact loss on a text, in nats per word, and how many words it is the mean of."""

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(
    model: LanguageModel,
    tokens: np.ndarray,
    *,
    batch_size: int = 32,
    sequence_length: int = 35,
    max_tokens: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Computes the exact loss of a model on a text: full softmax, float32, summed in double.

    Args:
      model: the language model.
      tokens: `[N]` integer ids; each but the first is predicted once.
      batch_size: contiguous streams read side by side, each from the zero state.
      sequence_length: time steps of a batch; the state is carried over, so it does not matter to the result.
      max_tokens: at most so many words, spread evenly over the text; 0 is all.
      progress: whether to show a progress bar.

    Returns:
      An `Evaluation`.
    """
    graphdef, params = nnx.split(model)
    batch_size = max(1, min(batch_size, tokens.size - 1))
    carry = model.initial_carry(batch_size)
    total, count = 0.0, 0
    batches = evaluation_batches(tokens, batch_size, sequence_length, max_tokens)
    words = min(max_tokens or tokens.size, tokens.size - 1)
    with tqdm(total=words, desc="evaluating", unit=" words", disable=not progress, leave=False) as bar:
        for inputs, labels, mask in batches:
            loss, carry = _summed_loss(graphdef, params, inputs, labels, mask, carry)
            total += float(loss)
            count += int(mask.sum())
            bar.update(int(mask.sum()))
    return Evaluation(total / count, count)


@partial(jax.jit, static_argnums=0)
def _summed_loss(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    carry: tuple[Carry, ...],
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, params)
    hidden, carry = model.hidden(model.embed(inputs), carry)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    losses = softmax_loss(model.weights[...], model.biases[...], labels.reshape(-1), hidden)
    return jnp.sum(jnp.where(mask.reshape(-1), losses, 0.0)), carry
