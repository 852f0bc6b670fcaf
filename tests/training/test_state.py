"""The state before the first step: a good start from a corpus, and settings that do not fit."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import make_random_model

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.word_vectors import word_vectors
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import split_params
from jaxlm.training.settings import class_order
from jaxlm.training.state import TrainState

TRAIN = TrainConfig(batch_size=3, sequence_length=4, num_sampled=12)


def test_a_corpus_gives_unigram_biases_word_vectors_and_counts(corpus):
    vocab_size = len(corpus.vocabulary)
    model_config = ModelConfig(vocab_size, embedding_size=6, hidden_size=8)
    state = TrainState.from_corpus(corpus, model_config, dataclasses.replace(TRAIN, sampler="unigram"))
    counts = np.array(corpus.vocabulary.counts)
    np.testing.assert_allclose(jax.nn.softmax(state.tables["biases"]), counts / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(state.unigrams.probability, counts / counts.sum(), rtol=1e-5)
    ratio = state.tables["embedding"] / word_vectors(corpus.train, vocab_size, 6)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    plain = TrainState.from_corpus(corpus, model_config, TRAIN, use_word_vectors=False)
    assert jnp.abs(plain.tables["embedding"]).max() <= 1.0
    assert int(state.step) == 0 and state.carry[0][0].shape == (3, 8)
    np.testing.assert_array_equal(jax.tree.leaves(state.carry), 0.0)


def test_a_model_of_another_size_than_the_corpus_raises(corpus):
    with pytest.raises(InputError, match="`vocab_size`: expected 120"):
        TrainState.from_corpus(corpus, ModelConfig(121), TRAIN)


@pytest.mark.parametrize(
    ("change", "counts", "message"),
    [
        ({"sampler": "unigram"}, None, "unigram_counts"),
        ({"sampler": "unigram"}, np.ones(22, int), "unigram_counts"),
        ({"sampler": "unigram"}, np.full(23, 1 / 23), "integer counts"),
    ],
)
def test_settings_that_do_not_fit_the_model_raise(change, counts, message):
    with pytest.raises(InputError, match=message):
        TrainState.create(make_random_model(), dataclasses.replace(TRAIN, **change), counts)


ORDER = class_order(np.arange(22))


@pytest.mark.parametrize(
    ("tied", "settings", "message"),
    [
        (False, {"frozen": ["embeding"]}, "`frozen`: expected a list of names among biases, dense/0/kernel, embedding"),
        (False, {"frozen": "embedding"}, "`frozen`: expected a list"),
        (True, {"frozen": ["embedding"]}, "`frozen`: expected a list"),
        (False, {"order": ORDER}, "`order`: expected a ClassOrder of 23 ids"),
    ],
)
def test_parameters_and_orders_that_the_model_lacks_raise(tied, settings, message):
    model = LanguageModel(ModelConfig(23, 6, 8, projection_size=6, tied=tied), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=message):
        TrainState.create(model, TRAIN, **settings)
    _, tables, dense = split_params(model)
    with pytest.raises(InputError, match=message.partition(":")[0]):
        TrainState.for_body(optax.identity, tables, dense, TRAIN, lookups=("weights",), **settings)


@pytest.mark.parametrize(
    ("counts", "ids"),
    [([0.2, 0.5], [1, 0]), ([2**40, 2**40 + 1], [1, 0]), (np.array([1, 3, 3], np.uint8), [1, 2, 0])],
)
def test_class_order_sorts_counts_and_frequencies(counts, ids):
    order = class_order(counts)
    assert order.ids.tolist() == ids and order.ranks[order.ids].tolist() == list(range(len(ids)))


@pytest.mark.parametrize("counts", [[[1, 2], [3, 4]], [1.0, np.nan], ["a"], 3])
def test_class_order_of_anything_else_raises(counts):
    with pytest.raises(InputError, match="`counts`: expected a vector of finite numbers"):
        class_order(counts)


def test_more_candidates_than_words_are_all_the_words_and_it_says_so(caplog):
    with caplog.at_level(logging.INFO, "jaxlm"):
        state = TrainState.create(make_random_model(), dataclasses.replace(TRAIN, num_sampled=24))
    assert state.config.num_sampled == 23
    assert caplog.messages == ["`num_sampled` is 23 instead of 24: the vocabulary has no more words"]


def test_full_softmax_ignores_the_number_of_candidates():
    TrainState.create(make_random_model(), dataclasses.replace(TRAIN, loss="full", num_sampled=1000))
