"""The Keras model of a config: Embedding -> LSTM stack -> Dense softmax."""

from collections.abc import Mapping

import jax
import keras
import numpy as np
from flax import nnx

from convert.weights import to_keras
from jaxlm.config import ModelConfig
from jaxlm.model import LanguageModel


def build(config: ModelConfig) -> keras.Model:
    """Builds an ordinary functional Keras model with dynamic batch and time.

    Args:
      config: shape of the model. Dropout is left out: it does nothing in inference.

    Returns:
      A model from ids `[batch, time]` int32 to probabilities `[batch, time, vocab_size]` float32.
    """
    inputs = keras.Input((None,), dtype="int32", name="token_ids")
    outputs = keras.layers.Embedding(config.vocab_size, config.embedding_size, name="embedding")(inputs)
    for layer in range(config.num_layers):
        outputs = keras.layers.LSTM(config.hidden_size, return_sequences=True, name=f"lstm_{layer + 1}")(outputs)
    outputs = keras.layers.Dense(config.vocab_size, activation="softmax", name="softmax")(outputs)
    return keras.Model(inputs, outputs, name="language_model")


def fill(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Assigns weights by their Keras paths; each path must be there."""
    variables = {variable.path: variable for variable in model.weights}
    for path, array in weights.items():
        variables[path].assign(array)


def language_model_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """Returns a model's weights by their jaxlm names, such as "lstms/0/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def from_language_model(model: LanguageModel) -> keras.Model:
    """Returns the Keras model with the weights of a `LanguageModel`.

    Raises:
      InputError: a weight is NaN or infinite.
    """
    weights = to_keras(language_model_weights(model), model.config)  # checked before anything is built
    keras_model = build(model.config)
    fill(keras_model, weights)
    return keras_model
