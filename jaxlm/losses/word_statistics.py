"""Per-word statistics of the softmax, block by block: log-probability, rank, entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxlm.losses.blocks import LogSumExp, block_logits, even_block_size, mask_padding, num_blocks
from jaxlm.parallel.collectives import local_ids, pmax, psum, take_local_rows
from jaxlm.parallel.mesh import Axes
from jaxlm.token_ids import as_int32


class WordStatistics(NamedTuple):
    """Log-probability and rank of a class, and entropy of the softmax, for each of N inputs."""

    log_probabilities: jax.Array  # [N] float32, of the labels, in nats
    ranks: jax.Array  # [N] int32, 1 for the most likely class
    entropies: jax.Array  # [N] float32, of the distribution, in nats


def word_statistics(
    inputs: jax.Array,
    weights: jax.Array,
    labels: ArrayLike,
    *,
    biases: jax.Array | None = None,
    block_size: int = 1024,
) -> WordStatistics:
    """Computes the log-probabilities and ranks of labels and the entropies of a softmax, without holding all logits.

    rank = 1 + number of classes with a logit above the label's;
    entropy = logsumexp - sum of p * logit, with running sums beside the running log-sum-exp.

    Args:
      inputs: `[N, D]` float32.
      weights: `[V, D]` float32, one row per class.
      labels: `[N]` integer, the true classes; a label that is not in [0, V) gives a log-probability of NaN.
      biases: `[V]` float32; None for no biases.
      block_size: maximum number of classes in a block; memory is `[block_size, N]`.

    Returns:
      `WordStatistics`.

    References:
      `linear_cross_entropy`, for the pass over blocks of classes.

    >>> statistics = word_statistics(jnp.ones((1, 1)), jnp.log(jnp.array([[1.0], [4.0], [3.0]])), jnp.array([2]))
    >>> float(jnp.exp(statistics.log_probabilities[0])), int(statistics.ranks[0])
    (0.375, 2)
    """
    biases = jnp.zeros(weights.shape[0], weights.dtype) if biases is None else biases
    labels = jnp.asarray(as_int32("labels", labels))
    return local_word_statistics(inputs, weights, labels, biases, weights.shape[0], block_size=block_size)


def local_word_statistics(
    inputs: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    biases: jax.Array,
    num_classes: int,
    axes: Axes = (),
    block_size: int = 1024,
) -> WordStatistics:
    """Computes `word_statistics` of classes whose rows are sharded along axes of a mesh, as in `exact_losses`."""
    num_rows = weights.shape[0]
    block_size, biases = even_block_size(num_rows, block_size), mask_padding(biases, num_classes, axes)
    inputs_t = inputs.T  # [D, N]
    label_rows, label_biases = take_local_rows(weights, labels, axes), take_local_rows(biases, labels, axes)
    label_logits = psum(jnp.sum(inputs * label_rows, axis=-1) + label_biases, axes)
    labels = local_ids(labels, num_rows, axes)

    def add_block(block: jax.Array, running: tuple[LogSumExp, jax.Array, jax.Array]) -> tuple:
        before, weighted, above = running
        start, _, logits = block_logits(block, weights, biases, inputs_t, block_size)  # [block_size, N]
        sums, exponentials, factor = before.add(logits)
        shifted = logits - sums.highest[None, :]
        # sum of exp(logit - highest) * (logit - highest): smaller numbers than those of p * logit
        shift = before.highest - sums.highest
        weighted = factor * (weighted + before.total * shift) + (exponentials * shifted).sum(axis=0)
        count = (logits > label_logits[None, :]).astype(jnp.float32).sum(axis=0).astype(jnp.int32)
        # the label is not above itself, though the product may round its logit another way
        own = jnp.take_along_axis(logits, (labels - start).clip(0, block_size - 1)[None, :], axis=0)[0]
        is_here = (labels >= block * block_size) & (labels < start + block_size)
        above += count - (is_here & (own > label_logits))
        return sums, weighted, above

    zeros = jnp.zeros_like(inputs[:, 0])
    start = (LogSumExp.of_nothing(inputs), zeros, zeros.astype(jnp.int32))
    sums, weighted, above = jax.lax.fori_loop(0, num_blocks(num_rows, block_size), add_block, start)
    highest, total = sums
    if axes:
        shift = jnp.maximum(highest - pmax(highest, axes), -1e3)  # finite for a shard of padding alone
        weighted = psum(jnp.exp(shift) * (weighted + total * shift), axes)
        total, above, highest = psum(jnp.exp(shift) * total, axes), psum(above, axes), pmax(highest, axes)
    log_total = jnp.log(total)
    log_probabilities = jnp.minimum(label_logits - highest - log_total, 0.0)  # rounding may reach above 0
    return WordStatistics(log_probabilities, 1 + above, log_total - weighted / total)
