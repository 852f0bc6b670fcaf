"""`LanguageModel`: embedding -> LSTM stack -> softmax rows, as a Flax NNX module."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jaxlm.config import ComputeDtype, ModelConfig
from jaxlm.errors import require
from jaxlm.model.dense import Dense
from jaxlm.model.initializers import initial_embedding, initial_weights
from jaxlm.model.lstm import LSTM, Carry
from jaxlm.parallel.mesh import Mesh, pad, padded_rows
from jaxlm.row_updates import take_rows


class RowParam(nnx.Param):
    """A table with row-sparse updates. `split_params` separates it from dense parameters."""


class LanguageModel(nnx.Module):
    """A word-level language model. Initial values are those of Keras unless stated otherwise.

    Args:
      config: shape of the model.
      log_unigram: `[vocab_size]` float32, initial softmax biases: the log-probabilities of the words
        (`jaxlm.Vocabulary.log_unigram`), by far the largest single gain with a large vocabulary. None starts
        the biases at 0, as Keras does.
      word_vectors: `[vocab_size, embedding_size]` float32 with a mean square of 1, from which embedding and
        softmax rows start (`jaxlm.word_vectors`), the next largest gain. None starts them at random.
      rngs: with a `params` stream.
      mesh: the mesh of the tables (`jaxlm.make_mesh`): rows of zeros pad them to shards of equal size. The other
        rows are those without a mesh. `TrainState.from_corpus` moves the tables onto it.

    Attributes:
      embedding: `[vocab_size, embedding_size]` float32, the word vectors or uniform in [-1, 1]. Both are wider
        than in Keras, so that words differ from the first step on. None if `config.tied`.
      lstms: the layers of `LSTM`.
      dense: the layers of `Dense`, a bottleneck of `projection_size` among them.
      weights: `[vocab_size, softmax_size]` float32 softmax rows: the word vectors, rotated into this width, or
        Glorot uniform; if tied, uniform in [-0.1, 0.1] as in Merity et al. 2018,
        https://arxiv.org/abs/1708.02182.
      biases: `[vocab_size]` float32; zeros without `config.softmax_bias`.

    Raises:
      InputError: `log_unigram` or `word_vectors` has the wrong shape.

    References:
      `keras.layers.Embedding`, `keras.layers.LSTM`, `keras.layers.Dense`.

    >>> model = LanguageModel(ModelConfig(vocab_size=50, embedding_size=8, hidden_size=16), rngs=nnx.Rngs(0))
    >>> logits, carry = model(jnp.array([[3, 1, 4]]))
    >>> logits.shape
    (1, 3, 50)
    """

    def __init__(
        self,
        config: ModelConfig,
        log_unigram: ArrayLike | None = None,
        word_vectors: ArrayLike | None = None,
        *,
        rngs: nnx.Rngs,
        mesh: Mesh | None = None,
    ):
        self.config, self.mesh = config, mesh
        vectors = _checked(word_vectors, (config.vocab_size, config.embedding_size), "word_vectors", mesh)
        self.embedding = None if config.tied else RowParam(initial_embedding(config, vectors, rngs, mesh))
        widths = [layer.size for layer in config.lstms] + [layer.size for layer in config.dense]
        sizes = iter([config.embedding_size, *widths])  # of each layer's inputs
        self.lstms = nnx.List(
            [LSTM(next(sizes), lstm.size, use_bias=lstm.use_bias, rngs=rngs) for lstm in config.lstms]
        )
        self.dense = nnx.List([Dense(next(sizes), dense, rngs=rngs) for dense in config.dense])
        self.weights = RowParam(initial_weights(config, vectors, rngs, mesh))
        biases = _checked(log_unigram, (config.vocab_size,), "log_unigram", mesh)
        zeros = biases is None or not config.softmax_bias
        self.biases = RowParam(jnp.zeros(padded_rows(config.vocab_size, mesh), jnp.float32) if zeros else biases)

    def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
        """Returns the zero state: a (c, h) for each layer, each `[batch_size, hidden_size]` float32."""
        # copied from the host, since jnp.zeros would compile a program for each shape
        zeros = [np.broadcast_to(np.float32(0), (batch_size, lstm.size)) for lstm in self.config.lstms]
        return jax.device_put(tuple((state, state) for state in zeros))

    @property
    def input_rows(self) -> jax.Array:
        """The embedding rows, or the softmax rows if the model is tied."""
        return (self.weights if self.embedding is None else self.embedding)[...]

    def embed(self, inputs: jax.Array) -> jax.Array:
        """Returns the embedding rows `[..., embedding_size]` of ids `[...]`; NaN for ids out of range."""
        if self.mesh is not None:  # rows of padding are not words
            inputs = jnp.where(inputs < self.config.vocab_size, inputs, -1)
        return take_rows(self.input_rows, inputs)

    def hidden(self, embedded: jax.Array, carry: tuple[Carry, ...]) -> tuple[jax.Array, tuple[Carry, ...]]:
        """Runs the LSTM stack, and the Dense layers if there are any, on embedding rows, without dropout.

        Args:
          embedded: `[batch, time, embedding_size]` float32, rows of `embedding`.
          carry: a (c, h) for each layer.

        Returns:
          outputs `[batch, time, softmax_size]` and the carry after the last time step.
        """
        _, outputs, carry = self.lstm_outputs(embedded, carry)
        return self.dense_outputs(outputs), carry

    def lstm_outputs(
        self,
        embedded: jax.Array,
        carry: tuple[Carry, ...],
        dropout_keys: jax.Array | None = None,
        dtype: ComputeDtype = "float32",
        variational: bool = False,
    ) -> tuple[jax.Array, jax.Array, tuple[Carry, ...]]:
        """Runs the LSTM stack on embedding rows.

        Args:
          embedded: `[batch, time, embedding_size]` float32, rows of `embedding`.
          carry: a (c, h) for each layer.
          dropout_keys: `[batch]` of `jax.random.key`; None for no dropout, as in evaluation.
          dtype: of the factors of the products.
          variational: whether dropout draws one mask for all time steps.

        Returns:
          outputs of the last LSTM before and after dropout, and the carry after the last time step.
        """
        rates, keys = self.config.dropout_rates, dropout_keys
        outputs = dropped = _dropout(embedded, rates[0], keys, 0, variational)
        new_carry = []
        for layer, (lstm, layer_carry) in enumerate(zip(self.lstms, carry, strict=True), start=1):
            outputs, layer_carry = lstm(dropped, layer_carry, dtype)
            dropped = _dropout(outputs, rates[layer], keys, layer, variational)
            new_carry.append(layer_carry)
        return outputs, dropped, tuple(new_carry)

    def dense_outputs(
        self,
        outputs: jax.Array,
        dropout_keys: jax.Array | None = None,
        dtype: ComputeDtype = "float32",
        variational: bool = False,
    ) -> jax.Array:
        """Returns the inputs of the softmax, given the outputs of the last LSTM after dropout."""
        for layer, dense in enumerate(self.dense, start=1 + len(self.lstms)):
            rate = self.config.dropout_rates[layer]
            outputs = _dropout(dense(outputs, dtype), rate, dropout_keys, layer, variational)
        return outputs

    def __call__(
        self, inputs: jax.Array, carry: tuple[Carry, ...] | None = None
    ) -> tuple[jax.Array, tuple[Carry, ...]]:
        """Computes the logits of the next word at every position.

        Args:
          inputs: `[batch, time]` integer ids.
          carry: a (c, h) for each layer; None for the zero state.

        Returns:
          logits `[batch, time, vocab_size]` float32 and the carry after the last time step.
        """
        carry = self.initial_carry(inputs.shape[0]) if carry is None else carry
        hidden, carry = self.hidden(self.embed(inputs), carry)
        logits = hidden @ self.weights[...].T + self.biases[...][None, None, :]
        return logits[..., : self.config.vocab_size], carry


def _checked(rows: ArrayLike | None, shape: tuple[int, ...], name: str, mesh: Mesh | None) -> jax.Array | None:
    """Checks the shape of an array with one row per word; returns it padded for a mesh."""
    if rows is None:
        return None
    rows, padded = jnp.asarray(rows, jnp.float32), (padded_rows(shape[0], mesh), *shape[1:])
    require(rows.shape in (shape, padded), name, f"shape {shape}, one row per word", rows.shape)
    return pad(rows, padded[0])


def _dropout(inputs: jax.Array, rate: float, keys: jax.Array | None, layer: int, variational: bool) -> jax.Array:
    if keys is None or rate == 0.0:
        return inputs

    dropout = nnx.Dropout(rate, broadcast_dims=(0,) if variational else ())

    def drop(stream: jax.Array, key: jax.Array) -> jax.Array:  # [time, width]
        return dropout(stream, deterministic=False, rngs=jax.random.fold_in(key, layer))

    return jax.vmap(drop)(inputs, keys)
