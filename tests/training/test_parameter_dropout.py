"""Dropped words and recurrent weights: rates and means; test_step_against_pytorch.py compares steps with PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from step_helpers import TRAIN, batches, make_model

from jaxlm.data.batches import Batch, shard_batch
from jaxlm.training.batch_losses import exact_batch_loss
from jaxlm.training.parameter_dropout import drop_weights, drop_words
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

REGULARIZED = dataclasses.replace(
    TRAIN,
    loss="full",
    optimizer="sgd",
    variational_dropout=True,
    embedding_dropout=0.3,
    weight_dropout=0.5,
    activation_regularization=2.0,
    temporal_activation_regularization=1.0,
)


def test_words_and_weights_are_dropped_at_their_rates_and_keep_their_mean():
    ids = jnp.arange(20_000).reshape(4, -1)
    rows = drop_words(jnp.ones((*ids.shape, 3)), ids, 0.2, jax.random.key(0))
    weights = drop_weights({"recurrent_kernel": jnp.ones((100, 400)), "bias": jnp.ones(9)}, 0.2, jax.random.key(1))
    for values in (rows[..., 0], weights["recurrent_kernel"]):
        np.testing.assert_allclose(np.unique(values), [0.0, 1.25])
        np.testing.assert_allclose(jnp.mean(values == 0), 0.2, atol=0.012)  # four standard deviations
    np.testing.assert_array_equal(rows, rows[..., :1] * jnp.ones((1, 1, 3)))  # whole words
    np.testing.assert_array_equal(weights["bias"], 1.0)


def test_each_step_drops_others_and_evaluation_drops_nothing():
    (batch,), losses = batches(1), []
    state = TrainState.create(make_model(), dataclasses.replace(REGULARIZED, variational_dropout=False))
    exact = exact_batch_loss(state, shard_batch(batch, None))
    np.testing.assert_allclose(exact, evaluate_loss(state, batch), rtol=1e-5)
    for _ in range(3):
        state, loss = train_step(state, batch._replace(starts_epoch=True), 0.0)
        losses.append(float(loss))
    assert len({*losses, float(exact)}) == 4


def evaluate_loss(state: TrainState, batch: Batch) -> float:
    """Returns the loss of the plain model, which `jaxlm-convert` exports."""
    logits = jax.nn.log_softmax(state.model(batch.inputs)[0])
    return -float(jnp.take_along_axis(logits, jnp.asarray(batch.labels)[..., None], -1).mean())
