"""Files of a run: settings come back, damaged and foreign files are refused."""

import dataclasses
import json

import pytest

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.run import RunConfig, from_dict, load_config, load_vocabulary, read_metrics, save_config

CONFIG = RunConfig(
    ModelConfig(9, dropout=0.5), TrainConfig(optimizer="adagrad"), ScheduleConfig(minutes=2.5), "data", 70
)


@pytest.mark.parametrize("config", [CONFIG, RunConfig(CONFIG.model)])
def test_settings_come_back(tmp_path, config):
    save_config(tmp_path, config)
    assert load_config(tmp_path) == config


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(InputError, match="unknown keys \\['rate'\\], missing keys \\['vocab_size'\\]"):
        from_dict(ModelConfig, {"rate": 1}, "test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "written by another version of jaxlm: expected format 1. Received: 2"),
        ('"format": 1,', "", "Received: None"),
        ('"total_steps": 70', '"total_steps": "x"', "is damaged"),
        ('"total_steps"', '"steps"', "is damaged"),
        ('"hidden_size": 1024', '"hidden_size": -1', "hidden_size"),
        ('"schedule": {', '"schedule": {"x": 1, ', "unknown keys"),
        ("{", "", "not valid JSON"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, old, new, message):
    save_config(tmp_path, CONFIG)
    text = (tmp_path / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_config(tmp_path)


def test_a_vocabulary_of_another_size_is_refused(corpus_dir, corpus):
    assert load_vocabulary(corpus_dir, ModelConfig(len(corpus.vocabulary))) == corpus.vocabulary
    with pytest.raises(InputError, match="does not fit the model"):
        load_vocabulary(corpus_dir, dataclasses.replace(CONFIG.model))


def test_metrics_that_were_cut_off_are_read_up_to_the_cut(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
