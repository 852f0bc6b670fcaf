"""Variational dropout, dropped words and dropped recurrent weights against PyTorch, given the same masks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_helpers import MODEL, TRAIN, batches, make_model

from jaxlm.data.batches import Batch, shard_batch
from jaxlm.training.batch_losses import exact_batch_loss
from jaxlm.training.parameter_dropout import WEIGHTS, WORDS, drop_weights, drop_words
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

RATES = (0.4, 0.25, 0.5)  # after the embedding and after each LSTM
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


def masks_of_first_step(state: TrainState) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Returns the scaled masks of words `[V]`, of the recurrent kernels and of the layers' outputs `[B, 1, D]`."""
    _, key = jax.random.split(jax.random.fold_in(state.key, 0))
    words = jax.random.fold_in(jax.random.fold_in(key, WORDS), sorted(state.tables).index(state.lookups[0]))
    of_words = drop_words(jnp.ones((MODEL.vocab_size, 1)), jnp.arange(MODEL.vocab_size), 0.3, words)[:, 0]
    ones = jax.tree.map(jnp.ones_like, state.dense)
    of_weights = drop_weights(ones, 0.5, jax.random.fold_in(key, WEIGHTS))["lstms"]
    streams = jax.vmap(lambda stream: jax.random.fold_in(key, stream))(jnp.arange(TRAIN.batch_size))
    of_outputs = []
    for layer, (rate, width) in enumerate(zip(RATES, (5, 7, 7), strict=True)):
        kept = [jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, (1, width)) for key in streams]
        of_outputs.append(np.stack(kept) / np.float32(1 - rate))
    return np.asarray(of_words), [np.asarray(each["recurrent_kernel"]) for each in of_weights.values()], of_outputs


def awd_lstm_in_torch(tables: Any, lstms: Any, masks: tuple, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Returns the loss of AWD-LSTM as its authors compute it in PyTorch, and its parameters."""
    torch = pytest.importorskip("torch")
    words, kernels, outputs = (jax.tree.map(torch.tensor, part) for part in masks)
    params = {name: torch.tensor(np.asarray(table), requires_grad=True) for name, table in tables.items()}
    hidden = torch.nn.functional.embedding(torch.tensor(batch.inputs).long(), params["embedding"] * words[:, None])
    hidden = hidden * outputs[0]
    for layer, lstm in lstms.items():
        own = {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in lstm.items()}
        params |= {f"{layer}/{name}": value for name, value in own.items()}
        recurrent = own["recurrent_kernel"] * kernels[layer]
        zeros = torch.zeros(1, len(batch.inputs), len(recurrent))
        flat = [own["kernel"].T, recurrent.T, own["bias"], torch.zeros_like(own["bias"])]
        hidden, *_ = torch.lstm(hidden, (zeros, zeros), flat, True, 1, 0.0, True, False, True)
        raw, hidden = hidden, hidden * outputs[layer + 1]
    logits = hidden @ params["weights"].T + params["biases"]
    labels = torch.tensor(batch.labels).long()
    penalty = 2 * hidden.pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) + penalty, params


def test_a_step_with_all_dropouts_equals_pytorch():
    model = make_model(dataclasses.replace(MODEL, dropout_rates=RATES))
    state, (batch,) = TrainState.create(model, REGULARIZED), batches(1)
    before = jax.tree.map(np.asarray, (state.tables, state.dense))
    tables, lstms = before[0], before[1]["lstms"]
    expected, params = awd_lstm_in_torch(tables, lstms, masks_of_first_step(state), batch)
    expected.backward()
    state, loss = train_step(state, batch, 1.0)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    after = jax.tree.map(np.asarray, (state.tables, state.dense["lstms"]))
    moved = {name: after[0][name] - table for name, table in tables.items()}
    for layer, lstm in lstms.items():
        moved |= {f"{layer}/{name}": after[1][layer][name] - value for name, value in lstm.items()}
    assert moved.keys() == params.keys()
    for name, value in moved.items():
        correct = -params[name].grad.numpy()
        assert np.abs(correct).max() > 0
        np.testing.assert_allclose(value, correct, rtol=1e-3, atol=3e-6 * max(1, np.abs(correct).max()), err_msg=name)


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
