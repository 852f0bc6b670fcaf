"""Word vectors counted from the words next to each word, from which embedding and softmax rows start."""

import logging
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from jaxlm.config_checks import require_integer
from jaxlm.errors import require
from jaxlm.token_ids import as_int32, check_ids

CONTEXTS = 1024  # most frequent words, counted as left and as right neighbors
PRIOR = 5.0  # neighbors that each word is assumed to have besides those counted, by their frequency
FITTED = 20_000  # most frequent words, to which the principal components are fitted
BLOCK = 1 << 22  # tokens counted at a time
MAX_BLOCKS = 12  # spread evenly over a longer text; 50 million words are enough

logger = logging.getLogger(__name__)


def word_vectors(tokens: jax.Array | ArrayLike, vocab_size: int, width: int) -> np.ndarray:
    """Computes a vector for each word, such that words with the same neighbors have similar vectors.

    x[w, c] = (sqrt(p(c | w)) - sqrt(p(c))) / p(c)^(1/4) over frequent neighbors c, left and right ones apart,
    reduced to `width` principal components, each divided by the square root of its standard deviation.

    Args:
      tokens: `[N]` integer ids, sorted by decreasing frequency, at least two.
      vocab_size: number of words V.
      width: of a vector.

    Returns:
      `[V, width]` float32, with a mean square of 1 over the words of the text. Components that the text does
      not have are 0; the vector of a word that does not occur is nearly 0.

    Raises:
      InputError: there are fewer than two ids, or ids out of range.

    References:
      Lebret and Collobert 2014, Word Embeddings through Hellinger PCA, https://arxiv.org/abs/1312.5542;
      Levy, Goldberg and Dagan 2015, https://aclanthology.org/Q15-1016, section 3.3, for the scaling.

    >>> word_vectors([0, 1, 0, 2, 0, 1], vocab_size=4, width=2).shape
    (4, 2)
    """
    tokens = np.asarray(check_ids("tokens", tokens, vocab_size))
    require(tokens.size >= 2, "tokens", "at least two ids", tokens.size)
    require_integer("width", width, 1)
    logger.info("counting neighboring words for the initial word vectors")
    counts, neighbors = _count(tokens, vocab_size)
    features = _features(counts, neighbors)
    frequency = counts / counts.sum()  # p(w)
    weights = np.sqrt(frequency[:FITTED]).astype(np.float32)[:, None]
    weights /= weights.sum()
    fitted = features.rows(FITTED)
    mean = (weights * fitted).sum(axis=0, keepdims=True)
    fitted = (fitted - mean) * np.sqrt(weights)
    components = _principal_components(fitted.T @ fitted, width)
    vectors = features.project(components) - mean @ components
    mean_square = np.einsum("v,vd,vd->", frequency, vectors, vectors, optimize=True) / width
    return vectors / np.float32(np.sqrt(mean_square) or 1.0)


class Features(NamedTuple):
    """x `[V, 2 * contexts]`, as a sparse matrix plus an outer product, the values of neighbors never seen."""

    seen: sparse.csr_matrix  # [V, 2 * contexts]
    unseen: np.ndarray  # [V, 1]
    context: np.ndarray  # [1, 2 * contexts]

    def rows(self, count: int) -> np.ndarray:
        """Returns the first rows of x."""
        return self.seen[:count].toarray() + self.unseen[:count] * self.context

    def project(self, components: np.ndarray) -> np.ndarray:
        """Returns x @ components."""
        return self.seen @ components + self.unseen * (self.context @ components)


def _features(counts: np.ndarray, neighbors: sparse.csr_matrix) -> Features:
    """Returns x for counts `[V]` of words and `[V, 2 * contexts]` of their neighbors."""
    contexts = neighbors.shape[1] // 2
    probability = np.tile(np.maximum(counts[:contexts], 1.0) / counts.sum(), 2)  # p(c) [2 * contexts]
    unseen = np.sqrt(PRIOR / (counts + PRIOR))  # [V]
    pairs = neighbors.tocoo()
    words, columns = pairs.row, pairs.col
    seen = np.sqrt((pairs.data + PRIOR * probability[columns]) / (counts[words] + PRIOR))
    values = (seen - unseen[words] * np.sqrt(probability[columns])) * probability[columns] ** -0.25
    matrix = sparse.csr_matrix((values.astype(np.float32), (words, columns)), neighbors.shape)
    return Features(matrix, (unseen - 1.0).astype(np.float32)[:, None], (probability**0.25).astype(np.float32)[None, :])


def _count(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Counts each word `[V]`, and its frequent neighbors before it and after it `[V, 2 * contexts]`."""
    contexts = min(CONTEXTS, vocab_size)
    counts = np.zeros(vocab_size)
    neighbors = sparse.csr_matrix((vocab_size, 2 * contexts), dtype=np.float32)
    starts = np.arange(0, tokens.size, BLOCK)
    for start in starts[np.linspace(0, starts.size - 1, min(starts.size, MAX_BLOCKS)).astype(int)]:
        # one more, for the pair across the boundary
        block = np.asarray(as_int32("tokens", tokens[start : start + BLOCK + 1]))
        counts += np.bincount(block[:BLOCK], minlength=vocab_size)
        before, after = block[:-1], block[1:]
        left, right = before < contexts, after < contexts
        rows = np.concatenate([after[left], before[right]])
        columns = np.concatenate([before[left], contexts + after[right]])
        ones = np.ones(rows.size, np.float32)
        neighbors += sparse.coo_matrix((ones, (rows, columns)), neighbors.shape).tocsr()
    return counts, neighbors


def _principal_components(covariance: np.ndarray, width: int) -> np.ndarray:
    """Returns the components of largest variance, each divided by the square root of its standard deviation."""
    variances, components = np.linalg.eigh(covariance)
    variances, components = variances[::-1][:width], components[:, ::-1][:, :width]
    real = variances > 1e-6 * variances[0]
    scaled = np.where(real, components * np.where(real, variances, 1.0) ** -0.25, 0.0)
    return np.pad(scaled, ((0, 0), (0, width - scaled.shape[1]))).astype(np.float32)
