"""Bands of word frequency: perplexity and sampling probability of the words of each band."""

from typing import NamedTuple

import numpy as np

from jaxlm.config import TrainConfig
from jaxlm.inference.perplexity import perplexity_of


class Band(NamedTuple):
    """Words of similar frequency: ranks from `first` to `last`, 0 for the most frequent word."""

    first: int
    last: int
    ids: np.ndarray  # of the words, by rank
    share: float  # of the labels
    perplexity: float  # of the labels in the band; NaN if there are none
    inclusion: float  # mean probability that a step samples a word of the band


def frequency_bands(
    labels: np.ndarray, log_probabilities: np.ndarray, counts: np.ndarray, config: TrainConfig | None
) -> list[Band]:
    """Returns the bands 0 to 9, 10 to 99, 100 to 999 and so on of ranks.

    A rank is an id, unless the ids of a Keras model have another order. `labels` `[N]` are a text, with their
    log-probabilities `[N]`; `counts` `[V]` those of the training text.
    """
    order = np.argsort(-counts, kind="stable")
    ranks = np.argsort(order)[labels]
    inclusion = np.full(counts.size, np.nan) if config is None else inclusion_probabilities(counts, config)
    bounds = [0, *(10**n for n in range(1, 9) if 10**n < counts.size), counts.size]
    bands = []
    for first, end in zip(bounds, bounds[1:], strict=False):
        inside = (ranks >= first) & (ranks < end)
        ids = order[first:end]
        perplexity = perplexity_of(-float(log_probabilities[inside].mean())) if inside.any() else np.nan
        bands.append(Band(first, end - 1, ids, float(inside.mean()), perplexity, float(inclusion[ids].mean())))
    return bands


def inclusion_probabilities(counts: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Returns the probability of each word `[V]` to be among the sampled classes of a step.

    -expm1(T * log1p(-P)), where T draws give `num_sampled` distinct words on average.
    """
    size = counts.size
    if config.loss == "full" or config.num_sampled >= size:
        return np.ones(size)
    n = np.arange(1, size + 1)
    weights = {"log_uniform": np.log1p(1 / n), "uniform": np.ones(size), "unigram": np.maximum(counts, 1)}
    probabilities = weights[config.sampler] / weights[config.sampler].sum()

    def included(draws: float) -> np.ndarray:
        return -np.expm1(draws * np.log1p(-np.minimum(probabilities, 1 - 1e-12)))

    low, high = 0.0, 1e15
    for _ in range(200):
        middle = (low * high) ** 0.5 if low else high / 2
        low, high = (middle, high) if included(middle).sum() < config.num_sampled else (low, middle)
        if high - low <= 1e-9 * high:
            break
    return included(high)
