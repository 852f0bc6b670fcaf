"""Averages of the parameters against the mean of copies that are made after each step."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from step_helpers import TRAIN, batches, make_model

from jaxlm.training.optimizer import averaging_has_begun, start_averages
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "average_after": 3},
        {"optimizer": "adam", "loss": "full", "weight_decay": 0.1, "average_patience": 5},
        pytest.param({"average_after": 8, "average_patience": 5}, marks=pytest.mark.exhaustive),
    ],
)
def test_averages_are_the_mean_of_the_parameters_after_each_later_step(change):
    config = dataclasses.replace(TRAIN, **change)
    state = TrainState.create(make_model(), config)
    plain = TrainState.create(make_model(), dataclasses.replace(config, average_after=0, average_patience=0))
    copies = []
    for number, batch in enumerate(batches(9), start=1):
        if number == 4 and config.average_patience:
            assert not averaging_has_begun(state.opt_state)
            state = dataclasses.replace(state, opt_state=start_averages(state.opt_state))
        assert averaging_has_begun(state.opt_state) == (number > 3)
        weight = np.nan if number == 6 else 1.0  # this step is skipped, and so none
        batch = batch._replace(weights=np.full(batch.labels.shape, weight, np.float32))
        state, _ = train_step(state, batch, 0.1)
        plain, _ = train_step(plain, batch, 0.1)
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(state.model, nnx.Param)))
        jax.tree.map(np.testing.assert_array_equal, params, nnx.to_pure_dict(nnx.state(plain.model, nnx.Param)))
        copies += [params] if number > 3 and number != 6 else []
        expected = jax.tree.map(lambda *each: np.mean(each, 0), *copies) if copies else params
        ours = nnx.to_pure_dict(nnx.state(state.averaged_model, nnx.Param))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), ours, expected)
    assert int(state.skipped[0]) == 1 and len(copies) == 5
