"""The samplers by their names, and draws that the tests of them share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.candidate_sampling.distributions import learned_unigrams, unigram_table
from jaxlm.candidate_sampling.samplers import (
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)

LEVEL = 1e-3  # smallest p-value that passes
SAMPLERS = ["log_uniform", "uniform", "fixed_unigram", "learned_unigram"]


def weights_of(range_max: int) -> np.ndarray:
    """Returns integer weights in no order."""
    return np.random.default_rng(range_max).integers(1, 1 + 5 * range_max, range_max)


def probabilities(name: str, range_max: int) -> np.ndarray:
    if name == "log_uniform":
        return np.log1p(1 / (np.arange(range_max) + 1.0)) / np.log(range_max + 1)
    weights = np.ones(range_max) if name == "uniform" else weights_of(range_max)
    return weights / weights.sum()


def sampler(name: str, range_max: int):
    """Returns a function `(key, true_classes, num_sampled, unique) -> sampled_values`."""
    if name == "log_uniform":
        return lambda *arguments: log_uniform_candidate_sampler(*arguments, range_max)
    if name == "uniform":
        return lambda *arguments: uniform_candidate_sampler(*arguments, range_max)
    if name == "fixed_unigram":
        table = unigram_table(weights_of(range_max))
        return lambda *arguments: fixed_unigram_candidate_sampler(*arguments, range_max, table)
    state = learned_unigrams(range_max)
    seen = np.repeat(np.arange(range_max), weights_of(range_max) - 1)[:, None]  # each starts at 1
    if seen.size:
        _, state = learned_unigram_candidate_sampler(jax.random.key(9), jnp.asarray(seen), 1, False, range_max, state)
    return lambda *arguments: learned_unigram_candidate_sampler(*arguments, range_max, state)[0]


def draw_many(name: str, num_sampled: int, unique: bool, range_max: int, repeats: int, probe: int = 0):
    """Returns candidates `[repeats, num_sampled]` and the expected counts `[repeats]` of class `probe`."""
    sample, keys = sampler(name, range_max), jax.random.split(jax.random.key(1), repeats)
    true_classes = jnp.full((1, 1), probe)
    values = jax.jit(lambda keys: jax.lax.map(lambda key: sample(key, true_classes, num_sampled, unique), keys))(keys)
    return np.asarray(values.sampled_candidates), np.asarray(values.true_expected_count)[:, 0, 0]


def num_tries(expected_count: np.ndarray, p: float, num_sampled: int) -> np.ndarray:
    """Returns the number of draws behind an expected count."""
    none_rejected = np.isclose(expected_count, p * num_sampled, rtol=1e-6)
    return np.where(none_rejected, num_sampled, np.round(np.log1p(-expected_count) / np.log1p(-p))).astype(int)
