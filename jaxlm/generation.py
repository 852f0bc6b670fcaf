"""Text from a prompt, one word at a time. The state carries over, so no word is computed twice."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from jaxlm.errors import require
from jaxlm.lstm import Carry
from jaxlm.model import LanguageModel
from jaxlm.token_ids import check_ids


def generate(
    model: LanguageModel,
    prompt: jax.Array | ArrayLike,
    num_words: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    avoid: ArrayLike = (),
    key: jax.Array,
) -> list[int]:
    """Draws words one after the other from the model's exact distribution.

    Args:
      model: the language model.
      prompt: `[N]` integer ids to continue, at least one.
      num_words: number of words to draw.
      temperature: divides the logits; 0 takes the most likely word.
      top_k: draw among the k most likely words; 0 for all.
      avoid: ids never to draw, such as that of `<unk>`.
      key: a `jax.random.key`.

    Returns:
      `num_words` ids, without the prompt.

    Raises:
      InputError: the prompt is empty, an id on the host is out of range, or an argument is out of range.

    >>> from jaxlm.config import ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=50, hidden_size=16), rngs=nnx.Rngs(0))
    >>> len(generate(model, [3, 1, 4], 5, key=jax.random.key(0)))
    5
    """
    vocab_size = model.config.vocab_size
    ids = check_ids("prompt", prompt, vocab_size)
    avoided = check_ids("avoid", np.asarray(avoid, np.int32), vocab_size)
    require(ids.size >= 1, "prompt", "at least one word", ids.size)
    require(num_words >= 0, "num_words", "at least 0", num_words)
    require(temperature >= 0, "temperature", "at least 0", temperature)
    require(0 <= top_k <= vocab_size, "top_k", f"0 to {vocab_size}, the size of the vocabulary", top_k)
    graphdef, params = nnx.split(model)
    carry = model.initial_carry(1)
    banned = jnp.zeros(vocab_size, bool).at[avoided].set(True)
    for word in ids[:-1]:
        _, carry = _read(graphdef, params, jnp.int32(word), carry)
    words = [jnp.int32(ids[-1])]
    for n in range(num_words):
        word, carry = _next_word(
            graphdef, top_k, params, words[-1], carry, banned, np.float32(temperature), jax.random.fold_in(key, n)
        )
        words.append(word)
    return [int(word) for word in words[1:]]


def _advance(model: LanguageModel, word: jax.Array, carry: tuple[Carry, ...]) -> tuple[jax.Array, tuple[Carry, ...]]:
    hidden, carry = model.hidden(model.embed(word[None, None]), carry)
    return hidden[0, 0], carry


@partial(jax.jit, static_argnums=0)
def _read(graphdef: nnx.GraphDef, params: Any, word: jax.Array, carry: tuple[Carry, ...]) -> Any:
    return _advance(nnx.merge(graphdef, params), word, carry)


@partial(jax.jit, static_argnums=(0, 1))
def _next_word(
    graphdef: nnx.GraphDef,
    top_k: int,
    params: Any,
    word: jax.Array,
    carry: tuple[Carry, ...],
    banned: jax.Array,
    temperature: jax.Array | np.float32,
    key: jax.Array,
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, params)
    hidden, carry = _advance(model, word, carry)
    logits = jnp.where(banned, -jnp.inf, model.weights[...] @ hidden + model.biases[...])  # [vocab_size]
    if top_k:
        logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][-1], -jnp.inf, logits)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature == 0, jnp.argmax(logits), drawn).astype(jnp.int32), carry
