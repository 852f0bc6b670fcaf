"""Nearest neighbors of words and next-word predictions."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import require
from jaxlm.inference.generation import encode_prompt, next_logits, read_word
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel, place_like
from jaxlm.token_ids import check_ids

Table = Literal["embedding", "softmax"]
TABLES: tuple[Table, ...] = ("embedding", "softmax")


class NearestWords(NamedTuple):
    """The words with the most similar rows, the most similar first."""

    ids: np.ndarray  # [N, k] int32
    cosines: np.ndarray  # [N, k] float32


class NextWords(NamedTuple):
    """The most likely next words, the most likely first."""

    words: list[str]  # k
    probabilities: np.ndarray  # [k] float32


def nearest_words(
    model: LanguageModel, words: ArrayLike, k: int = 10, *, table: Table = "embedding", avoid: ArrayLike = ()
) -> NearestWords:
    """Finds the nearest neighbors of words by the cosine similarity of their rows.

    cosine = row @ other / (norm(row) * norm(other))

    Args:
      model: the language model.
      words: `[N]` integer ids.
      k: maximum number of neighbors; fewer if the vocabulary has fewer other words, `avoid` not counted.
      table: "embedding" rows, the inputs of the LSTM, or "softmax" rows, its outputs. They are the same if the model is
        tied.
      avoid: ids that are left out, such as that of `<unk>`.

    Returns:
      `NearestWords`. A word is not its own neighbor.

    Raises:
      InputError: an id is out of range, or an argument is.

    >>> from jaxlm.config import ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=50, hidden_size=16), rngs=nnx.Rngs(0))
    >>> nearest_words(model, [3, 1], k=5).ids.shape
    (2, 5)
    """
    vocab_size = model.config.vocab_size
    ids = np.asarray(check_ids("words", words, vocab_size))
    avoided = np.asarray(check_ids("avoid", np.asarray(avoid, np.int32), vocab_size))
    require(k >= 1, "k", "at least 1", k)
    k = min(k, max(vocab_size - 1 - np.unique(avoided).size, 0))
    require(table in TABLES, "table", "'embedding' or 'softmax'", table)
    rows = model.weights if table == "softmax" or model.embedding is None else model.embedding
    banned = np.arange(rows.shape[0]) >= vocab_size  # rows of padding
    banned[avoided] = True
    found = [_nearest(rows[...], np.int32(word), banned, k) for word in ids]
    return NearestWords(*(np.stack([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True)))


@partial(jax.jit, static_argnums=3)
@in_float32
def _nearest(rows: jax.Array, word: np.int32, banned: np.ndarray, k: int) -> tuple[jax.Array, jax.Array]:
    lengths = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    cosines = rows @ rows[word] / jnp.maximum(lengths * lengths[word], 1e-30)
    cosines, ids = jax.lax.top_k(jnp.where(banned, -jnp.inf, cosines).at[word].set(-jnp.inf), k)
    return ids, cosines


def next_words(model: LanguageModel, vocabulary: Vocabulary, prompt: str, k: int = 10) -> NextWords:
    """Finds the most likely words after a prompt, with their exact probabilities.

    Args:
      model: the language model.
      vocabulary: of the model.
      prompt: beginning of a line, read as `jaxlm.generate` reads it; "" for the first word of a line.
      k: maximum number of words; all if the vocabulary has fewer.

    Returns:
      `NextWords`.

    Raises:
      InputError: the vocabulary is not that of the model, there is no word to begin with, or `k` is out of range.

    >>> from jaxlm.config import ModelConfig
    >>> vocabulary = Vocabulary(("the", "<eos>", "sea", "<unk>"), None, "words")
    >>> model = LanguageModel(ModelConfig(vocab_size=4, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    >>> sorted(next_words(model, vocabulary, "the sea", k=4).words)
    ['<eos>', '<unk>', 'sea', 'the']
    """
    require(k >= 1, "k", "at least 1", k)
    graphdef, params = nnx.split(model)
    carry = place_like(model, model.initial_carry(1))
    for word in encode_prompt(model, vocabulary, prompt):
        hidden, carry = read_word(graphdef, params, np.int32(word), carry)
    ids, probabilities = map(np.asarray, _most_likely(graphdef, params, hidden, min(k, len(vocabulary))))
    return NextWords([vocabulary.words[i] for i in ids], probabilities)


@partial(jax.jit, static_argnums=(0, 3))
@in_float32
def _most_likely(graphdef: nnx.GraphDef, params: Any, hidden: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    (logits,) = next_logits(nnx.merge(graphdef, params), hidden)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), k)
    return ids, probabilities
