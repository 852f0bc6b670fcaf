"""A model and batches whose sizes no number of devices divides, for the tests on a mesh."""

import jax
import numpy as np
from flax import nnx

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.model.language_model import LanguageModel

VOCAB_SIZE, BATCH_SIZE = 53, 6  # neither of them divides by any number of devices
MODEL = ModelConfig(VOCAB_SIZE, embedding_size=5, hidden_size=7, num_layers=2, dropout=0.3)
TRAIN = TrainConfig(
    batch_size=BATCH_SIZE,
    sequence_length=4,
    num_sampled=13,
    clip_norm=0.05,
    initial_accumulator_value=1e-9,
    compute_dtype="float32",
)


def make_model(config: ModelConfig) -> LanguageModel:
    """Makes a model with random biases too, so that nothing is hidden by a zero."""
    model = LanguageModel(config, rngs=nnx.Rngs(1))
    model.biases[...] = jax.random.normal(jax.random.key(2), model.biases.shape)
    return model


def make_batch(has_labels_somewhere: bool = False) -> Batch:
    rng = np.random.default_rng(4)
    words = rng.integers(0, 40, (BATCH_SIZE, 5)).astype(np.int32)
    batch = Batch(words[:, :-1], words[:, 1:])
    if not has_labels_somewhere:
        return batch
    positions = rng.permuted(np.tile(np.arange(4, dtype=np.int32), (BATCH_SIZE, 1)), axis=1)[:, :3]
    labels = np.take_along_axis(batch.labels, positions, axis=1)
    return Batch(batch.inputs, labels, False, positions, rng.random((BATCH_SIZE, 3), np.float32))
