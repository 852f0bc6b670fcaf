"""Settings are checked when made."""

import pytest

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.errors import InputError


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"dropout": 1.0},
        {"num_layers": 1.5},
        {"vocab_size": -3},
        {"embedding_size": True},
        {"tied": True},
        {"projection_size": -1},
        {"projection_size": 2.5},
    ],
)
def test_model_settings_out_of_range_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        ModelConfig(**({"vocab_size": 10} | change))


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"batch_size": 2.0}),
        (TrainConfig, {"num_sampled": 0}),
        (TrainConfig, {"optimizer": "adamw"}),
        (TrainConfig, {"sampler": "zipf"}),
        (TrainConfig, {"loss": "hinge"}),
        (TrainConfig, {"clip_norm": -1}),
        (TrainConfig, {"clip_norm": float("nan")}),
        (ScheduleConfig, {"learning_rate": 0.0}),
        (ScheduleConfig, {"learning_rate": float("nan")}),
        (ScheduleConfig, {"learning_rate": float("inf")}),
        (ScheduleConfig, {"decay_fraction": 1.5}),
        (ScheduleConfig, {"eval_every": 0}),
        (ScheduleConfig, {"minutes": float("inf")}),
    ],
)
def test_training_settings_out_of_range_raise(config, change):
    with pytest.raises(InputError, match=next(iter(change))):
        config(**change)


def test_two_lengths_raise():
    with pytest.raises(InputError, match="only one of `steps`, `epochs` and `minutes`"):
        ScheduleConfig(steps=5, minutes=1.0)
