"""The parity check every conversion ends with: log-probabilities through both models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from jaxlm.model import LanguageModel

TOLERANCE = 1e-4  # on log-probabilities; a probability is about 1e-5 at a large vocabulary and proves nothing
LOWEST = -69.0  # log(1e-30): below it a float32 softmax has lost its digits


class Parity(NamedTuple):
    """How far two models are apart."""

    difference: float  # largest absolute difference of log-probabilities
    compared: int  # number of log-probabilities

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        if not self.compared:
            return "the models differ in shape"
        return (
            f"largest difference of {self.compared:,} log-probabilities (JAX and Keras {keras.__version__}"
            f" on {keras.backend.backend()}): {self.difference:.2e}, allowed {TOLERANCE:.0e}"
        )


def compare(
    model: LanguageModel, keras_model: keras.Model, *, batch_size: int = 2, time: int = 9, seed: int = 0
) -> Parity:
    """Compares log-probabilities on random ids, drawn evenly from the vocabulary.

    Args:
      model: the language model.
      keras_model: from ids `[batch, time]` to probabilities `[batch, time, vocab_size]`.
      batch_size: sequences of random ids.
      time: length of each.
      seed: of the ids.

    Returns:
      The `Parity`; a shape that differs counts as infinitely far.
    """
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (batch_size, time), np.int32)
    if keras_model.output_shape != (None, None, model.config.vocab_size):
        return Parity(float("inf"), 0)
    ours = np.asarray(jax.nn.log_softmax(model(jnp.asarray(ids))[0]))
    theirs = np.asarray(keras.ops.convert_to_numpy(keras_model(ids)))
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = np.log(theirs)
    difference = np.abs(np.maximum(ours, LOWEST) - np.maximum(theirs, LOWEST))
    return Parity(float(difference.max()), difference.size)
