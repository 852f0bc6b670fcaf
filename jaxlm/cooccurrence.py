"""Word vectors from the words found beside each word: where embedding and softmax rows start."""

import numpy as np
from scipy import sparse

from jaxlm.config import require

CONTEXTS = 1024  # most frequent words, counted as left and as right neighbours
PRIOR = 5.0  # neighbours that every word is taken to have beside those counted, by their frequency
FITTED = 20_000  # most frequent words, to which the principal components are fitted
BLOCK = 1 << 22  # tokens counted at a time
MAX_BLOCKS = 12  # spread evenly over a longer text: 50 million words say enough


def word_vectors(tokens: np.ndarray, vocab_size: int, width: int) -> np.ndarray:
    """Computes a vector for each word, so that words with the same neighbours lie close together.

    x[w, c] = (sqrt(p(c | w)) - sqrt(p(c))) / p(c)^(1/4) over frequent neighbours c, left and right ones apart,
    reduced to `width` principal components, each divided by the square root of its deviation.

    Args:
      tokens: `[N]` integer ids, which fall by frequency.
      vocab_size: number of words V.
      width: of a vector.

    Returns:
      `[V, width]` float32 with a mean square of 1 over the words of the text; components that the text
      does not have are 0, and so is nearly the vector of a word that it does not have.

    Raises:
      InputError: there are fewer than two tokens, or ids out of range.

    References:
      Lebret and Collobert 2014, Word Embeddings through Hellinger PCA, https://arxiv.org/abs/1312.5542;
      Levy, Goldberg and Dagan 2015, https://aclanthology.org/Q15-1016, section 3.3, for the deviations.
    """
    require(tokens.size >= 2, "tokens", "two ids or more", tokens.size)
    lowest, highest = int(tokens.min()), int(tokens.max())
    require(0 <= lowest and highest < vocab_size, "tokens", f"ids in [0, {vocab_size})", f"{lowest} to {highest}")
    counts, neighbours = _count(tokens, vocab_size)
    contexts = neighbours.shape[1] // 2
    total = counts.sum()
    probability = np.tile(np.maximum(counts[:contexts], 1.0) / total, 2)  # p(c) [2 * contexts]
    # x is sparse but for a multiple of one vector: what a word has of the neighbours never seen beside it
    unseen = np.sqrt(PRIOR / (counts + PRIOR))  # [V]
    pairs = neighbours.tocoo()
    words, columns = pairs.row, pairs.col
    seen = np.sqrt((pairs.data + PRIOR * probability[columns]) / (counts[words] + PRIOR))
    values = (seen - unseen[words] * np.sqrt(probability[columns])) * probability[columns] ** -0.25
    features = sparse.csr_matrix((values.astype(np.float32), (words, columns)), neighbours.shape)
    shift, rest = (unseen - 1.0).astype(np.float32)[:, None], (probability**0.25).astype(np.float32)[None, :]

    fitted = features[:FITTED].toarray() + shift[:FITTED] * rest
    importance = np.sqrt(counts[:FITTED] / total).astype(np.float32)[:, None]
    mean = (importance * fitted).sum(axis=0, keepdims=True) / importance.sum()
    fitted = (fitted - mean) * np.sqrt(importance / importance.sum())
    components = _principal_components(fitted.T @ fitted, width)
    vectors = features @ components + shift * (rest @ components) - mean @ components
    mean_square = np.einsum("v,vd,vd->", counts / total, vectors, vectors, optimize=True) / width
    return vectors / np.float32(np.sqrt(mean_square) or 1.0)


def _count(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Counts each word `[V]` and its frequent neighbours, those before it and those after it `[V, 2 * contexts]`."""
    contexts = min(CONTEXTS, vocab_size)
    counts = np.zeros(vocab_size)
    neighbours = sparse.csr_matrix((vocab_size, 2 * contexts), dtype=np.float32)
    starts = np.arange(0, tokens.size, BLOCK)
    for start in starts[np.linspace(0, starts.size - 1, min(starts.size, MAX_BLOCKS)).astype(int)]:
        block = np.asarray(tokens[start : start + BLOCK + 1])  # one more, for the pair across the end
        counts += np.bincount(block[:BLOCK], minlength=vocab_size)
        before, after = block[:-1], block[1:]
        left, right = before < contexts, after < contexts
        rows = np.concatenate([after[left], before[right]])
        columns = np.concatenate([before[left], contexts + after[right]])
        ones = np.ones(rows.size, np.float32)
        neighbours += sparse.coo_matrix((ones, (rows, columns)), neighbours.shape).tocsr()
    return counts, neighbours


def _principal_components(covariance: np.ndarray, width: int) -> np.ndarray:
    """Returns the components of the largest variances, each divided by the root of its deviation."""
    variances, components = np.linalg.eigh(covariance)
    variances, components = variances[::-1][:width], components[:, ::-1][:, :width]
    real = variances > 1e-6 * variances[0]
    scaled = np.where(real, components * np.where(real, variances, 1.0) ** -0.25, 0.0)
    return np.pad(scaled, ((0, 0), (0, width - scaled.shape[1]))).astype(np.float32)
