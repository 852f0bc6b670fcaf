"""Nearest neighbors of words and next-word predictions."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.config_checks import require_integer
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import require
from jaxlm.inference.generation import encode_prompt, next_logits, read_word, require_vocabulary
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import place_like

Table = Literal["embedding", "softmax"]
TABLES: tuple[Table, ...] = ("embedding", "softmax")


class NearestWords(NamedTuple):
    """The words with the most similar rows, the most similar first."""

    words: list[str]  # k
    cosines: np.ndarray  # [k] float32


class NextWords(NamedTuple):
    """The most likely next words, the most likely first."""

    words: list[str]  # k
    probabilities: np.ndarray  # [k] float32


def nearest_words(
    model: LanguageModel, vocabulary: Vocabulary, word: str, k: int = 10, *, table: Table = "embedding"
) -> NearestWords:
    """Finds the nearest neighbors of a word by the cosine similarity of their rows.

    cosine = row @ other / (norm(row) * norm(other)). `<unk>` and padding are no neighbors.

    Args:
      model: the language model.
      vocabulary: of the model.
      word: a word of the vocabulary.
      k: maximum number of neighbors; all if the vocabulary has fewer.
      table: "embedding" rows, the inputs of the LSTM, or "softmax" rows, its outputs. They are the same if the model is
        tied.

    Returns:
      `NearestWords`.

    Raises:
      InputError: the vocabulary is not that of the model or lacks the word, or an argument is out of range.

    >>> from jaxlm.config import ModelConfig
    >>> vocabulary = Vocabulary(("the", "<eos>", "sea", "<unk>"), None, "words")
    >>> model = LanguageModel(ModelConfig(vocab_size=4, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    >>> sorted(nearest_words(model, vocabulary, "sea").words)
    ['<eos>', 'the']
    """
    require_vocabulary(model, vocabulary)
    require(word in vocabulary.ids, "word", "a word of the vocabulary", word)
    require_integer("k", k, 1)
    require(table in TABLES, "table", "'embedding' or 'softmax'", table)
    rows = model.weights if table == "softmax" or model.embedding is None else model.embedding
    banned = np.arange(rows.shape[0]) >= len(vocabulary)  # rows of padding
    banned[[vocabulary.ids[word], *vocabulary.placeholders]] = True
    k = min(k, int((~banned).sum()))
    ids, cosines = map(np.asarray, _nearest(rows[...], np.int32(vocabulary.ids[word]), banned, k))
    return NearestWords([vocabulary.words[i] for i in ids], cosines)


@partial(jax.jit, static_argnums=3)
@in_float32
def _nearest(rows: jax.Array, word: np.int32, banned: np.ndarray, k: int) -> tuple[jax.Array, jax.Array]:
    lengths = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    cosines = rows @ rows[word] / jnp.maximum(lengths * lengths[word], 1e-30)
    cosines, ids = jax.lax.top_k(jnp.where(banned, -jnp.inf, cosines), k)
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
    require_integer("k", k, 1)
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
