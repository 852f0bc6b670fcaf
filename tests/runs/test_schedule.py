"""The learning rate rises, stays and falls; minutes become steps when the decay begins."""

import dataclasses
import math

import numpy as np
import pytest

from jaxlm.config import ScheduleConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.runs.schedule import StepEstimate, known_total_steps, learning_rate_schedule

TRAIN = TrainConfig(batch_size=4, sequence_length=5)


def test_the_learning_rate_rises_stays_and_falls():
    config = ScheduleConfig(learning_rate=2.0, warmup_steps=4, decay_fraction=0.5)
    schedule = learning_rate_schedule(config, 20)
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(rates[4:11], 2.0)
    np.testing.assert_allclose(rates[10:], np.linspace(2, 0, 11), atol=1e-6)
    assert learning_rate_schedule(config, 0)(10**6) == 2.0  # no decay while the length is unknown


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_warmup_and_decay_it_is_constant(warmup_steps):
    config = ScheduleConfig(learning_rate=2.0, warmup_steps=warmup_steps, decay_fraction=0.0)
    assert [float(learning_rate_schedule(config, 9)(step)) for step in range(10)] == [2.0] * 10


@pytest.mark.parametrize(
    ("constant", "epochs", "divisor"),
    [(4, 13, 2.0), (6, 39, 1.2), (14, 55, 1.15)],  # small, medium and large
)
def test_the_learning_rate_of_zaremba_et_al_falls_by_epochs(constant, epochs, divisor):
    fraction = 1 - constant / epochs
    config = ScheduleConfig(1.0, warmup_steps=0, decay_fraction=fraction, epoch_decay=divisor, epochs=epochs)
    schedule, steps = learning_rate_schedule(config, 7 * epochs), np.arange(7 * epochs)
    expected = [divisor ** -max(step // 7 + 1 - constant, 0) for step in steps]
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-5)
    assert learning_rate_schedule(config, 0)(10**6) == 1.0  # no decay while the length is unknown


@pytest.mark.parametrize("epochs", [1.01, 2.5, 6.99, 7.0])
def test_a_fraction_of_an_epoch_decays_at_the_ends_of_whole_ones(epochs):
    total = math.ceil(7 * epochs)
    config = ScheduleConfig(1.0, warmup_steps=0, decay_fraction=1.0, epoch_decay=2.0, epochs=epochs)
    expected = [2.0 ** -(step // 7 + 1) for step in range(total)]
    np.testing.assert_allclose(learning_rate_schedule(config, total)(np.arange(total)), expected, rtol=1e-5)


def test_lengths_in_steps_epochs_and_minutes():
    assert known_total_steps(ScheduleConfig(steps=7), TRAIN, 201) == 7
    assert known_total_steps(ScheduleConfig(epochs=2.5), TRAIN, 201) == 25
    assert known_total_steps(ScheduleConfig(), TRAIN, 201) == 10
    assert known_total_steps(ScheduleConfig(minutes=1.0), TRAIN, 201) == 0
    with pytest.raises(InputError, match="too few for a batch"):
        known_total_steps(ScheduleConfig(minutes=1.0), dataclasses.replace(TRAIN, batch_size=99), 201)


def test_minutes_become_steps_when_the_decay_begins():
    schedule = ScheduleConfig(minutes=10.0, decay_fraction=0.3)  # the decay begins after 420 s
    estimate = StepEstimate(schedule, first_step=0)
    totals = [estimate.total_steps(step, 20.0 + step) for step in range(1, 402)]  # 20 s to compile, then 1 s a step
    assert totals[:399] == [0] * 399
    assert totals[399] == 580


def test_a_decay_over_the_whole_run_waits_until_the_speed_is_known():
    estimate = StepEstimate(ScheduleConfig(minutes=10.0, decay_fraction=1.0), first_step=0)
    seconds = [20.0 + step + 8 * (step > 3) for step in range(1, 40)]  # the fourth step takes nine times as long
    totals = [estimate.total_steps(step, each) for step, each in enumerate(seconds, start=1)]
    assert totals[:24] == [0] * 24  # 30 s, a twentieth of the length, after the third step
    assert 400 < totals[24] < 580 and totals[38] > totals[24]
