"""Files of a run: settings come back, damaged and foreign files are refused."""

import subprocess
import sys

import pytest
from helpers import rewrite_json

from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.runs.directory import RunConfig, from_dict, load_config, load_vocabulary, save_config
from jaxlm.runs.locked_run import lock
from jaxlm.runs.metrics import read_metrics

CONFIG = RunConfig(
    ModelConfig(9, dropout=0.5), TrainConfig(optimizer="adagrad"), ScheduleConfig(minutes=2.5), "data", 70
)


LONG = ModelConfig(9, lstms=(LSTMConfig(3), LSTMConfig(4, False)), dense=(DenseConfig(5, "relu"),), softmax_bias=False)
RATES = ModelConfig(9, hidden_size=3, dropout_rates=(0.1, 0.25))


@pytest.mark.parametrize("config", [CONFIG, RunConfig(CONFIG.model), RunConfig(LONG), RunConfig(RATES)])
def test_settings_come_back(tmp_path, config):
    save_config(tmp_path, config)
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    "change",
    [
        {"lstms": [[3, True]]},
        {"lstms": [{"size": 3, "bias": True}]},
        {"lstms": {"size": 3}},
        {"dense": [{"size": 3, "activation": ["relu"]}]},
        {"dropout_rates": [0.1, "0.2"]},
        {"softmax_bias": None},
    ],
)
def test_damaged_layers_are_named(change):
    with pytest.raises(InputError, match=f"test: .*{next(iter(change))}|test: .*activation"):
        from_dict(ModelConfig, {"vocab_size": 9} | change, "test")


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(InputError, match="unknown keys \\['rate'\\], missing keys \\['vocab_size'\\]"):
        from_dict(ModelConfig, {"rate": 1}, "test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "written by another version of jaxlm: expected format 1. Received: 2"),
        ('"total_steps": 70', '"total_steps": "x"', "is damaged"),
        ('"total_steps"', '"steps"', "is damaged"),
        ('"fingerprints": {}', '"fingerprints": 3', "is damaged"),
        ('"size": 1024', '"size": -1', "config.json: model: lstms: Invalid `size`: expected at least 1"),
        ('"size": 1024', '"size": "1024"', "expected an integer. Received: '1024'"),
        (
            '"clip_norm": 10.0',
            '"clip_norm": null',
            "train: Invalid `clip_norm`: expected a finite number. Received: None",
        ),
        ('"minutes": 2.5', '"minutes": NaN', "schedule: Invalid `minutes`: expected a finite number"),
        ('"schedule": {', '"schedule": {"x": 1, ', "schedule: unknown keys \\['x'\\]"),
        ('"vocab_size": 9,', "", "model: unknown keys \\[\\], missing keys \\['vocab_size'\\]"),
    ],
)
def test_wrong_settings_are_named(tmp_path, old, new, message):
    save_config(tmp_path, CONFIG)
    rewrite_json(tmp_path / "config.json", old, new)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [('"format": 1,', ""), ("1024", "1025"), ("{", ""), ('"checksum": "', '"checksum": "0')]
)
def test_a_damaged_config_is_refused(tmp_path, old, new):
    save_config(tmp_path, CONFIG)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match="config.json"):
        load_config(tmp_path)


def test_a_lock_is_held_once_and_not_by_a_dead_process(tmp_path):
    code = "import sys, time; from pathlib import Path; from jaxlm.runs.locked_run import lock\n"
    code += "with lock(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(InputError, match="Another process is training"), lock(tmp_path):
        pass
    process.kill()
    process.wait()
    with lock(tmp_path):
        pass


def test_a_vocabulary_of_another_size_is_refused(corpus_dir, corpus):
    assert load_vocabulary(corpus_dir, RunConfig(ModelConfig(len(corpus.vocabulary)))) == corpus.vocabulary
    with pytest.raises(InputError, match="does not fit the model"):
        load_vocabulary(corpus_dir, CONFIG)


def test_damaged_lines_of_the_metrics_are_left_out_and_told(tmp_path, caplog):
    assert read_metrics(tmp_path) == []
    lines = [b'{"step": 1}', b'{"step": \xff}', b'{"step": "x"}', b"[3]", b'{"step": 4}']
    lines += [b'{"step": 4, "valid_words": [1]}', b'{"seconds": 1.5}', b'{"step": 5, "lo']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 4}]
    assert [record.args[1] for record in caplog.records] == [2, 3, 4, 6, 7]  # the last line was cut off
