"""TensorFlow's candidate sampling in JAX: samplers, the distributions they draw from, and accidental hits."""

from jaxlm.candidate_sampling.accidental_hits import AccidentalHits, compute_accidental_hits
from jaxlm.candidate_sampling.distributions import LearnedUnigrams, UnigramTable, learned_unigrams, unigram_table
from jaxlm.candidate_sampling.samplers import (
    SampledValues,
    all_candidate_sampler,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)

__all__ = [
    "AccidentalHits",
    "LearnedUnigrams",
    "SampledValues",
    "UnigramTable",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "fixed_unigram_candidate_sampler",
    "learned_unigram_candidate_sampler",
    "learned_unigrams",
    "log_uniform_candidate_sampler",
    "uniform_candidate_sampler",
    "unigram_table",
]
