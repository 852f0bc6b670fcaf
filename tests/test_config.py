"""Configs are checked when made, and go through JSON unchanged."""

import dataclasses

import pytest

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.files import read_json, write_json
from jaxlm.run import from_dict


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"dropout": 1.0},
        {"num_layers": 1.5},
        {"vocab_size": -3},
        {"embedding_size": True - 1},
        {"tied": True},
        {"projection_size": -1},
    ],
)
def test_models_out_of_range_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        ModelConfig(**({"vocab_size": 10} | change))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"optimizer": "adamw"},
        {"sampler": "zipf"},
        {"loss": "hinge"},
        {"decay_fraction": 1.5},
        {"clip_norm": -1},
        {"learning_rate": float("nan")},
    ],
)
def test_trainings_out_of_range_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)


def test_two_lengths_raise():
    with pytest.raises(InputError, match="one of steps, epochs, minutes"):
        TrainConfig(steps=5, minutes=1.0)


def test_exact_training_is_asked_for_by_loss_or_by_number():
    assert TrainConfig(loss="full").exact and TrainConfig(num_sampled=0).exact and not TrainConfig().exact


def test_json_goes_there_and_back(tmp_path):
    config = TrainConfig(optimizer="adagrad", minutes=2.5)
    path = tmp_path / "config.json"
    write_json(path, dataclasses.asdict(config))
    assert from_dict(TrainConfig, read_json(path), "test") == config
    with pytest.raises(InputError, match="unknown keys \\['rate'\\], missing keys \\['vocab_size'\\]"):
        from_dict(ModelConfig, {"rate": 1}, "test")
    for text in ("[1]", "{", ""):
        path.write_text(text)
        with pytest.raises(InputError):
            read_json(path)
