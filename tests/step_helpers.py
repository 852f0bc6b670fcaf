"""A small model, its configuration, and batches that the tests of a training step share."""

import jax
import numpy as np
from flax import nnx

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.model.language_model import LanguageModel

MODEL = ModelConfig(50, embedding_size=5, hidden_size=7, num_layers=2)
TRAIN = TrainConfig(
    batch_size=3,
    sequence_length=4,
    num_sampled=12,
    clip_norm=0.0,
    initial_accumulator_value=1e-9,
    compute_dtype="float32",
)
UNIGRAMS = np.arange(1, 51)


def make_model(config: ModelConfig = MODEL) -> LanguageModel:
    """Makes a model whose biases are random too, so that nothing is hidden by a zero."""
    model = LanguageModel(config, rngs=nnx.Rngs(1))
    model.biases[...] = jax.random.normal(jax.random.key(2), model.biases.shape)
    for lstm in model.lstms:
        if lstm.bias is not None:
            lstm.bias[...] += jax.random.normal(jax.random.key(3), lstm.bias.shape)
    return model


def batches(count: int, config: TrainConfig = TRAIN) -> list[Batch]:
    shape = (count, config.batch_size, config.sequence_length + 1)
    words = np.random.default_rng(4).integers(0, 30, shape).astype(np.int32)  # ids from 30 on never occur
    return [Batch(rows[:, :-1], rows[:, 1:]) for rows in words]
