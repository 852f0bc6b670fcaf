"""Generation of text from a prompt, word by word, with the LSTM state carried over."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from jaxlm.errors import require
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import Carry
from jaxlm.token_ids import check_ids


def generate(
    model: LanguageModel,
    prompt: jax.Array | ArrayLike,
    num_words: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    avoid: ArrayLike = (),
    stop: int | None = None,
    key: jax.Array | None = None,
) -> list[int]:
    """Draws words from the model's exact distribution, one after the other.

    Args:
      model: the language model.
      prompt: `[N]` integer ids to continue, at least one; `Vocabulary.encode` makes them of text.
      num_words: number of words to draw.
      temperature: divides the logits; 0 takes the most likely word, without randomness.
      top_k: draw among the k most likely words; 0 for all.
      top_p: draw among the most likely words that together have this probability, after temperature and `top_k`.
      avoid: ids that are never drawn, such as that of `<unk>`.
      stop: id after which to stop, such as that of `<eos>`.
      key: a `jax.random.key`; not needed at a temperature of 0.

    Returns:
      `num_words` ids, without the prompt; fewer if `stop` was drawn, which is then the last one.

    Raises:
      InputError: the prompt is empty, an id on the host or an argument is out of range, or `key` is missing.

    References:
      Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, https://arxiv.org/abs/1904.09751, for `top_p`.

    >>> from jaxlm.config import ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=50, hidden_size=16), rngs=nnx.Rngs(0))
    >>> len(generate(model, [3, 1, 4], 5, key=jax.random.key(0)))
    5
    """
    require(key is not None or temperature == 0, "key", "a jax.random.key, or a `temperature` of 0", key)
    keys = (jax.random.key(0) if key is None else key)[None]
    words = draw_words(
        model, prompt, num_words, temperature=temperature, top_k=top_k, top_p=top_p, avoid=avoid, keys=keys
    )
    drawn = []
    for (word,) in words:
        drawn.append(int(word))
        if word == stop:
            break
    return drawn


def draw_words(
    model: LanguageModel,
    prompt: jax.Array | ArrayLike,
    num_words: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    avoid: ArrayLike = (),
    keys: jax.Array,
) -> Iterator[np.ndarray]:
    """Yields the next word of several texts, `[num_samples]` int32, `num_words` times, as they are drawn.

    Args:
      keys: `[num_samples]` of `jax.random.key`; each text is the one that `generate` draws with its key.

    The other arguments and errors are those of `generate`.
    """
    vocab_size = model.config.vocab_size
    ids = check_ids("prompt", prompt, vocab_size)
    avoided = check_ids("avoid", np.asarray(avoid, np.int32), vocab_size)
    require(ids.size >= 1, "prompt", "at least one word", ids.size)
    require(num_words >= 0, "num_words", "at least 0", num_words)
    require(temperature >= 0, "temperature", "at least 0", temperature)
    require(top_k >= 0, "top_k", "at least 0", top_k)
    require(0 < top_p <= 1, "top_p", "a probability above 0, at most 1", top_p)
    banned = jnp.zeros(vocab_size, bool).at[avoided].set(True)
    return _words(model, ids, num_words, _Choice(min(top_k, vocab_size), top_p < 1), banned, temperature, top_p, keys)


class _Choice(NamedTuple):
    """Static settings of the compiled program."""

    top_k: int
    has_top_p: bool


def _words(
    model: LanguageModel,
    ids: jax.Array | np.ndarray,
    num_words: int,
    choice: _Choice,
    banned: jax.Array,
    temperature: float,
    top_p: float,
    keys: jax.Array,
) -> Iterator[np.ndarray]:
    graphdef, params = nnx.split(model)
    carry = model.initial_carry(1)
    for word in ids[:-1]:
        _, carry = read_word(graphdef, params, jnp.int32(word), carry)
    carry = jax.tree.map(lambda state: jnp.repeat(state, keys.shape[0], axis=0), carry)
    words = jnp.full(keys.shape, ids[-1], jnp.int32)
    numbers = np.float32(temperature), np.float32(top_p)
    for n in range(num_words):
        words, carry = _next_words(graphdef, choice, params, words, carry, banned, numbers, keys, np.uint32(n))
        yield np.asarray(words)


def _advance(model: LanguageModel, words: jax.Array, carry: tuple[Carry, ...]) -> tuple[jax.Array, tuple[Carry, ...]]:
    hidden, carry = model.hidden(model.embed(words[:, None]), carry)
    return hidden[:, 0], carry


@partial(jax.jit, static_argnums=0)
@in_float32
def read_word(
    graphdef: nnx.GraphDef, params: Any, word: jax.Array, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    """Reads one word of a prompt; returns the output `[1, softmax_size]` and the carry after it."""
    return _advance(nnx.merge(graphdef, params), word[None], carry)


def next_logits(model: LanguageModel, hidden: jax.Array) -> jax.Array:
    """Returns the logits of the next word, `[N, vocab_size]`, of outputs `[N, softmax_size]`."""
    logits = (model.weights[...] @ hidden.T).T + model.biases[...][None, :]
    return logits[:, : model.config.vocab_size]


@partial(jax.jit, static_argnums=(0, 1))
@in_float32
def _next_words(
    graphdef: nnx.GraphDef,
    choice: _Choice,
    params: Any,
    words: jax.Array,
    carry: tuple[Carry, ...],
    banned: jax.Array,
    numbers: tuple[jax.Array | np.float32, jax.Array | np.float32],
    keys: jax.Array,
    n: jax.Array | np.uint32,
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, params)
    temperature, top_p = numbers
    hidden, carry = _advance(model, words, carry)
    logits = jnp.where(banned[None, :], -jnp.inf, next_logits(model, hidden))  # [num_samples, vocab_size]
    if choice.top_k:
        logits = jnp.where(logits < jax.lax.top_k(logits, choice.top_k)[0][:, -1:], -jnp.inf, logits)
    scaled = logits / jnp.maximum(temperature, 1e-6)
    if choice.has_top_p:
        scaled = _nucleus(scaled, top_p)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.where(temperature == 0, jnp.argmax(logits, axis=1), drawn).astype(jnp.int32), carry


def _nucleus(logits: jax.Array, top_p: jax.Array | np.float32) -> jax.Array:
    """Sets the logits `[N, V]` of all but the most likely classes, which together reach `top_p`, to minus infinity."""
    descending = -jnp.sort(-logits, axis=1)
    probabilities = jax.nn.softmax(descending, axis=1)
    before = jnp.cumsum(probabilities, axis=1) - probabilities  # of more likely classes
    lowest = jnp.where(before < top_p, descending, jnp.inf).min(axis=1, keepdims=True)
    return jnp.where(logits < lowest, -jnp.inf, logits)
