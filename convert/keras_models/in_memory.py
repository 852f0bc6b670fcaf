"""Live Keras models: conversion to and from a `LanguageModel`, with a comparison."""

from typing import Any

import keras

from convert.checks.comparison import check
from convert.checks.predictor import language_model_predictor
from convert.keras_models.builder import assign_weights, build
from convert.keras_models.live_layers import (
    as_array,
    keras_predictor,
    read_live_model,
    require_plain_weights,
    weight_variables,
)
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.cudnn import as_lstm_arrays
from convert.weights.table import language_model_weights, model_from_keras_arrays, to_keras_weights
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel


def to_keras(model: LanguageModel, options: ExportOptions = DEFAULT_OPTIONS) -> keras.Model:
    """Makes an ordinary Keras model with the weights of a `LanguageModel`.

    Args:
      model: the language model.
      options: inputs, outputs and data type of the Keras model; by default it returns the probabilities
        `[batch, time, vocab_size]` of the next word at every position.

    Returns:
      A functional Keras model: Embedding -> LSTM, one or more -> Dense.

    Raises:
      InputError: a weight is NaN or infinite.

    References:
      `keras.layers.Embedding`, `keras.layers.LSTM`, `keras.layers.Dense`.

    >>> import jaxlm
    >>> from flax import nnx
    >>> model = jaxlm.LanguageModel(jaxlm.ModelConfig(50, embedding_size=8, hidden_size=16), rngs=nnx.Rngs(0))
    >>> to_keras(model).output.shape
    (None, None, 50)
    """
    weights = to_keras_weights(language_model_weights(model), model.config)  # checked before anything is built
    keras_model = build(model.config, options)
    assign_weights(keras_model, weights)
    return keras_model


def from_keras(model: Any) -> LanguageModel:
    """Makes a `LanguageModel` from a live Keras model (Keras 3 or `tf_keras`), and compares their predictions.

    Args:
      model: built, Sequential or functional: Embedding -> LSTM, one or more -> Dense layers, the last with a
        softmax or logits, and dropout between them. The log-uniform sampler expects ids sorted by decreasing
        frequency; `frequency_order` sorts them.

    Returns:
      The language model, float32. If the embedding has `mask_zero`, id 0 is an ordinary word in it.

    Raises:
      InputError: jaxlm cannot represent a layer (the message names it and the reason), a weight is not finite,
        or the models' log-probabilities differ.

    References:
      `keras.Model.get_weights`.

    >>> from keras import layers
    >>> model = keras.Sequential([layers.Embedding(50, 8), layers.LSTM(16, return_sequences=True), layers.Dense(50)])
    >>> model.build((None, None))
    >>> from_keras(model).config.hidden_size
    16
    """
    layers, structure = read_live_model(model)
    arrays = [as_array(variable) for layer in layers for variable in weight_variables(layer)]
    language_model = model_from_keras_arrays(as_lstm_arrays(arrays), structure.config)
    check(language_model_predictor(language_model), keras_predictor(model))
    return language_model


def load_into_keras(language_model: LanguageModel, model: Any) -> None:
    """Copies the weights of a `LanguageModel` into a live Keras model, and compares their predictions.

    Args:
      language_model: for example from `from_keras` of the same model, after training.
      model: of the same sizes. Its names, losses and compilation stay as they are.

    Raises:
      InputError: the sizes differ, a layer has LoRA, or as `from_keras`.

    References:
      `keras.layers.Layer.set_weights`.

    >>> from keras import layers
    >>> model = keras.Sequential([layers.Embedding(50, 8), layers.LSTM(16, return_sequences=True), layers.Dense(50)])
    >>> model.build((None, None))
    >>> load_into_keras(from_keras(model), model)
    """
    layers, _ = read_live_model(model)
    for layer in layers:
        require_plain_weights(layer, "copy the weights into a model without it")
    weights = list(to_keras_weights(language_model_weights(language_model), language_model.config).values())
    variables = [variable for layer in layers for variable in weight_variables(layer)]
    expected, shapes = ([tuple(array.shape) for array in arrays] for arrays in (weights, variables))
    if shapes != expected:
        raise InputError(f"Invalid `model`: expected weights of shapes {expected}. Received: {shapes}.")
    for variable, array in zip(variables, weights, strict=True):
        variable.assign(array)
    problem = "The weights were copied, but the two models differ"
    check(language_model_predictor(language_model), keras_predictor(model), problem)
