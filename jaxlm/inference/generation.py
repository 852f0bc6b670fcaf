"""Generation of text from a prompt, word by word, with the LSTM state carried over."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.config_checks import require_integer
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError, require
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import Carry
from jaxlm.model.params import place_like
from jaxlm.parallel.mesh import map_data


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str,
    num_words: int,
    *,
    until_eos: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
) -> str:
    """Continues a text with words drawn from the model's exact distribution, one after the other.

    The text begins a line, so `<eos>` comes before it. In a vocabulary without `<eos>` nothing comes before it. Unknown
    words of the prompt are read as `<unk>`, or left out without `<unk>`. `<unk>` and padding are never drawn. Words
    with a probability below about 1e-7 are drawn too rarely, as by `jax.random.categorical` in general.

    Args:
      model: the language model.
      vocabulary: of the model.
      prompt: text to continue; "" for a new one, if the vocabulary has `<eos>`.
      num_words: maximum number of words to draw.
      until_eos: whether to stop at the end of a line.
      temperature: divides the logits; 0 takes the most likely word, without randomness.
      top_k: draw among the k most likely words; 0 for all.
      top_p: draw among the most likely words that together have this probability, after temperature and `top_k`.
      key: a `jax.random.key`; not needed at a temperature of 0.

    Returns:
      The prompt and the words drawn, as a text.

    Raises:
      InputError: the vocabulary is not that of the model, there is no word to begin with, an argument is out of range,
        or `key` is missing.

    References:
      Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, https://arxiv.org/abs/1904.09751, for `top_p`.

    >>> from jaxlm.config import ModelConfig
    >>> vocabulary = Vocabulary(("the", "<eos>", "sea", "<unk>"), None, "words")
    >>> model = LanguageModel(ModelConfig(vocab_size=4, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    >>> generate(model, vocabulary, "the open sea", 0, temperature=0)
    'the <unk> sea'
    """
    require(key is not None or temperature == 0, "key", "a jax.random.key, or a `temperature` of 0", key)
    texts = draw_texts(
        model,
        vocabulary,
        prompt,
        num_words,
        until_eos=until_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        keys=map_data(lambda words: np.asarray(words)[None], jax.random.key(0) if key is None else key),
    )
    *_, (ids,) = texts
    return vocabulary.decode(ids).rstrip(" \n")


def draw_texts(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str,
    num_words: int,
    *,
    until_eos: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keys: jax.Array,
) -> Iterator[list[list[int]]]:
    """Yields the ids of several texts that continue a prompt, first those of the prompt, then after each word drawn.

    Args:
      keys: `[num_samples]` of `jax.random.key`; each text is the one that `generate` draws with its key.

    The other arguments and errors are those of `generate`.
    """
    ids = encode_prompt(model, vocabulary, prompt)
    stop = vocabulary.eos if until_eos else None
    if until_eos and stop is None:
        raise InputError("The vocabulary has no <eos>: leave out `until_eos`.")
    require_integer("num_words", num_words, 0)
    highest = float(np.finfo(np.float32).max)
    require(0 <= temperature <= highest, "temperature", "at least 0, and finite in float32", temperature)
    require_integer("top_k", top_k, 0)
    require(0 < top_p <= 1, "top_p", "a probability above 0, at most 1", top_p)
    banned = np.zeros(len(vocabulary), bool)
    banned[list(vocabulary.placeholders)] = True
    choice = _Choice(min(top_k, len(vocabulary)), top_p < 1)
    steps = _words(model, ids, num_words, choice, banned, temperature, top_p, keys)
    encoded = ids if vocabulary.eos is None else ids[1:]
    return _grow(encoded.tolist(), steps, keys.shape[0], stop)


def _grow(
    prompt: list[int], steps: Iterator[np.ndarray], num_texts: int, stop: int | None
) -> Iterator[list[list[int]]]:
    texts, ended = [list(prompt) for _ in range(num_texts)], [False] * num_texts
    yield texts
    for words in steps:
        for n, word in enumerate(words.tolist()):
            if not ended[n]:
                texts[n].append(word)
                ended[n] = word == stop
        yield texts
        if all(ended):
            break


def encode_prompt(model: LanguageModel, vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    """Returns the ids of a text that begins a line, `[N]` int32: `<eos>`, if the vocabulary has it, comes first.

    Raises:
      InputError: the vocabulary is not that of the model, the prompt is not a text, or there are no ids.
    """
    require_vocabulary(model, vocabulary)
    require(isinstance(prompt, str), "prompt", "a text", type(prompt).__name__)
    ids = vocabulary.encode(prompt)
    if vocabulary.eos is not None:
        return np.concatenate([np.array([vocabulary.eos], np.int32), ids])
    if not ids.size:
        raise InputError("The vocabulary has no <eos> to begin with: give a `prompt` of words it has.")
    return ids


def require_vocabulary(model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Raises `InputError` unless a vocabulary has as many words as the model."""
    size = model.config.vocab_size
    require(len(vocabulary) == size, "vocabulary", f"{size} words, as the model has", len(vocabulary))


class _Choice(NamedTuple):
    """Static settings of the compiled program."""

    top_k: int
    has_top_p: bool


def _words(
    model: LanguageModel,
    ids: np.ndarray,
    num_words: int,
    choice: _Choice,
    banned: np.ndarray,
    temperature: float,
    top_p: float,
    keys: jax.Array,
) -> Iterator[np.ndarray]:
    graphdef, params = nnx.split(model)
    carry = place_like(model, model.initial_carry(1))
    for word in ids[:-1]:
        _, carry = read_word(graphdef, params, np.int32(word), carry)
    carry = place_like(model, jax.tree.map(lambda state: np.repeat(np.asarray(state), keys.shape[0], axis=0), carry))
    words = place_like(model, np.full(keys.shape, ids[-1], np.int32))
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
    graphdef: nnx.GraphDef, params: Any, word: jax.Array | np.int32, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    """Reads one word of a prompt; returns the output `[1, softmax_size]` and the carry after it."""
    return _advance(nnx.merge(graphdef, params), jnp.asarray(word)[None], carry)


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
    banned: jax.Array | np.ndarray,
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
    # XLA multiplies by the inverse, which is 0 for the highest temperatures, and -inf * 0 is NaN
    scaled = jnp.where(jnp.isneginf(logits), -jnp.inf, logits / jnp.maximum(temperature, 1e-6))
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
