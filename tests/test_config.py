"""Settings are checked when made."""

import dataclasses

import pytest

from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
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
        {"lstms": [LSTMConfig(3)]},
        {"lstms": ((3, True),)},
        {"hidden_size": 9, "lstms": (LSTMConfig(3),)},
        {"num_layers": 2, "lstms": (LSTMConfig(3),)},
        {"dense": (DenseConfig(3),), "projection_size": 4},
        {"dropout_rates": (0.1, 0.2, 0.3)},
        {"dropout_rates": (0.1, 1.0)},
        {"dropout_rates": (0.1, 0.2), "dropout": 0.1},
        {"softmax_bias": 1},
    ],
)
def test_model_settings_out_of_range_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        ModelConfig(**({"vocab_size": 10} | change))


def test_layer_settings_out_of_range_raise():
    for config, arguments in (
        (LSTMConfig, (0,)),
        (LSTMConfig, (3, 1)),
        (DenseConfig, (2.0,)),
        (DenseConfig, (3, "gelu")),
    ):
        with pytest.raises(InputError, match="Invalid"):
            config(*arguments)


def test_the_short_and_the_long_form_describe_the_same_chain():
    short = ModelConfig(10, hidden_size=7, num_layers=2, projection_size=3, dropout=0.25)
    long = ModelConfig(10, lstms=(LSTMConfig(7), LSTMConfig(7)), dense=(DenseConfig(3, use_bias=False),))
    assert short == dataclasses.replace(long, dropout_rates=(0.25, 0.25, 0.25, 0.0))
    with pytest.raises(InputError, match="`hidden_size`: expected no value beside `lstms`"):
        dataclasses.replace(short, hidden_size=1024)  # the default is no exception


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
        (TrainConfig, {"embedding_dropout": 1.0}),
        (TrainConfig, {"weight_dropout": -0.1}),
        (TrainConfig, {"weight_decay": -1e-6}),
        (TrainConfig, {"average_after": 1.5}),
        (TrainConfig, {"average_patience": -1}),
        (TrainConfig, {"random_offsets": 3}),
        (TrainConfig, {"activation_regularization": -2.0}),
        (TrainConfig, {"temporal_activation_regularization": -1.0}),
        (TrainConfig, {"variational_dropout": 0.5}),
        (ScheduleConfig, {"epoch_decay": 2.0}),  # without `epochs`
        (ScheduleConfig, {"epoch_decay": 0.5, "epochs": 3}),
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
