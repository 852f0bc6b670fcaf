"""Word vectors against the same formula on dense arrays, in double precision."""

import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.data import word_vectors as counting
from jaxlm.data.word_vectors import CONTEXTS, PRIOR, word_vectors
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel


def zipf_tokens(size: int, vocab_size: int) -> np.ndarray:
    return (np.exp(np.random.default_rng(0).random(size) * np.log(vocab_size + 1)) - 1).astype(np.int32)


def dense_vectors(tokens: np.ndarray, vocab_size: int, width: int) -> np.ndarray:
    """The docstring's formula on dense arrays in double, by a singular value decomposition."""
    contexts = min(CONTEXTS, vocab_size)
    pairs = np.zeros((vocab_size, 2, vocab_size))
    np.add.at(pairs, (tokens[1:], 0, tokens[:-1]), 1)
    np.add.at(pairs, (tokens[:-1], 1, tokens[1:]), 1)
    counts = np.bincount(tokens, minlength=vocab_size)
    probability = np.maximum(counts, 1) / tokens.size
    conditional = (pairs + PRIOR * probability) / (counts + PRIOR)[:, None, None]
    x = ((np.sqrt(conditional) - np.sqrt(probability)) / probability**0.25)[..., :contexts].reshape(vocab_size, -1)
    importance = np.sqrt(counts) / np.sqrt(counts).sum()
    x -= importance @ x
    _, deviations, components = np.linalg.svd(np.sqrt(importance)[:, None] * x, full_matrices=False)
    vectors = x @ components[:width].T / np.sqrt(deviations[:width])
    return vectors / np.sqrt(counts / tokens.size @ (vectors**2).mean(axis=1))


@pytest.mark.parametrize(("vocab_size", "width"), [(97, 7), (60, 31)])
def test_vectors_equal_those_of_a_dense_decomposition(vocab_size, width):
    tokens = zipf_tokens(5000, vocab_size)
    ours, theirs = word_vectors(tokens, vocab_size, width), dense_vectors(tokens, vocab_size, width)
    assert ours.dtype == np.float32
    # components may be mirrored; products of vectors are not
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=2e-3 * np.abs(theirs @ theirs.T).max())
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=2e-3 * np.abs(theirs).max())


def test_vectors_do_not_depend_on_the_blocks(monkeypatch):
    tokens = zipf_tokens(3000, 50)
    whole = word_vectors(tokens, 50, 8)
    monkeypatch.setattr(counting, "BLOCK", 251)
    np.testing.assert_array_equal(word_vectors(tokens, 50, 8), whole)
    monkeypatch.setattr(counting, "MAX_BLOCKS", 3)
    part = word_vectors(tokens, 50, 8)
    assert np.isfinite(part).all() and not np.array_equal(part, whole)


def test_words_with_the_same_neighbors_lie_close_together():
    rng = np.random.default_rng(1)
    # three kinds of twenty words follow each other in turn: 0-19, 20-39, 40-59
    tokens = (np.arange(30_000) % 3 * 20 + rng.integers(0, 20, 30_000)).astype(np.int32)
    vectors = word_vectors(tokens, 60, 16)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit.T), axis=1)[:, 1:10]
    assert (nearest // 20 == np.arange(60)[:, None] // 20).all()


@pytest.mark.parametrize("tokens", [[0, 0, 0, 0], [0, 1], [3, 2, 1, 0, 3]])
def test_a_text_that_says_little_gives_finite_vectors(tokens):
    vectors = word_vectors(np.array(tokens, np.int32), 5, 24)  # wider than there are components
    assert vectors.shape == (5, 24) and np.isfinite(vectors).all()


@pytest.mark.parametrize("tokens", [[], [1], [0, 5], [-1, 2]])
def test_tokens_that_do_not_fit_are_refused(tokens):
    with pytest.raises(InputError, match="tokens"):
        word_vectors(np.array(tokens, np.int32), 5, 3)


@pytest.mark.parametrize("shape", [{}, {"projection_size": 5}, {"tied": True, "projection_size": 12}])
def test_model_starts_at_the_vectors(shape):
    config = ModelConfig(60, embedding_size=12, hidden_size=40, **shape)
    vectors = word_vectors(zipf_tokens(4000, 60), 60, 12)
    model = LanguageModel(config, None, vectors, rngs=nnx.Rngs(0))
    rows = model.weights[...]
    assert rows.shape == (60, config.softmax_size)
    embedding = rows if config.tied else model.embedding[...]
    ratio = embedding / vectors
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    if not shape:  # orthogonal: the products of vectors stay what they are, up to a factor
        products, theirs = rows @ rows.T, vectors @ vectors.T
        factor = float(products[0, 0] / theirs[0, 0])
        np.testing.assert_allclose(products, factor * theirs, atol=1e-3 * factor * np.abs(theirs).max())
    with pytest.raises(InputError, match="word_vectors"):
        LanguageModel(config, None, vectors[:-1], rngs=nnx.Rngs(0))
