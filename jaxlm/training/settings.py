"""Checks of a `TrainConfig`, its defaults for a machine, and the tables of its sampler."""

import dataclasses
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.candidate_sampling.distributions import UnigramTable, unigram_table
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import require
from jaxlm.matmul import fast_dtype

logger = logging.getLogger(__name__)


class ClassOrder(NamedTuple):
    """The order of ids by decreasing frequency."""

    ids: jax.Array  # [V] int32, the ids from frequent to rare
    ranks: jax.Array  # [V] int32, the place of each id in it


def class_order(counts: ArrayLike) -> ClassOrder | None:
    """Returns the order of ids by decreasing count, equal counts by id; None if they are in it already.

    >>> class_order([2, 9, 2]).ids.tolist()
    [1, 0, 2]
    """
    ids = np.argsort(-np.asarray(counts, np.int64), kind="stable").astype(np.int32)
    if np.array_equal(ids, np.arange(ids.size)):
        return None
    return ClassOrder(jnp.asarray(ids), jnp.asarray(np.argsort(ids).astype(np.int32)))


def check_config(
    config: TrainConfig, model: ModelConfig, unigram_counts: ArrayLike | None
) -> tuple[TrainConfig, UnigramTable | None]:
    """Checks a config and fills it in; returns it, and the table of the unigram sampler if it is used."""
    separate = config.train_embedding or not model.tied
    require(separate, "train_embedding", "True for tied rows, which are softmax rows too", config.train_embedding)
    config = resolve_config(config, model.vocab_size)
    if config.loss == "full" or config.sampler != "unigram":
        return config, None
    return config, counted_unigrams(unigram_counts, model.vocab_size)


def counted_unigrams(unigram_counts: ArrayLike | None, vocab_size: int) -> UnigramTable:
    """Returns the table of the unigram sampler."""
    counts = np.asarray([] if unigram_counts is None else unigram_counts)
    fits = counts.shape == (vocab_size,) and counts.dtype.kind in "iu"
    expected = f"integer counts of shape ({vocab_size},)"
    require(fits, "unigram_counts", expected, f"{counts.dtype} {counts.shape}")
    return unigram_table(np.maximum(counts, 1))


def default_batch_size() -> int:
    """Returns the number of streams with which training reaches the lowest perplexity in equal time on the device.

    On an H200, a minute of 128 streams ends at a perplexity of 73, one of 32 at 83. On a processor a step of more
    streams takes longer in proportion.
    """
    return 32 if jax.default_backend() == "cpu" else 128


def resolve_config(config: TrainConfig, vocab_size: int) -> TrainConfig:
    """Returns a config with the settings that depend on the machine or the vocabulary; logs a changed `num_sampled`.

    `compute_dtype` "auto" becomes the fastest type; `num_sampled` becomes at most the size of the vocabulary.
    """
    if config.compute_dtype == "auto":
        config = dataclasses.replace(config, compute_dtype=fast_dtype())
    if config.loss == "full" or config.num_sampled <= vocab_size:
        return config
    logger.info("num_sampled is %d instead of %d: the vocabulary has no more words", vocab_size, config.num_sampled)
    return dataclasses.replace(config, num_sampled=vocab_size)
