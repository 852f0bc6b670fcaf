"""Readers of config, vocabulary and token files, given anything: the value, or one `InputError`."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert import kept_model
from convert.keras_ids import KERAS_IDS_FILE, KerasIds
from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.corpus import load_tokens
from jaxlm.errors import InputError
from jaxlm.files import write_json
from jaxlm.run import RunConfig, load_config, save_config
from jaxlm.vocabulary import Vocabulary

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
VOCABULARY = Vocabulary(("the", "<eos>", "sea", "<unk>"), (9, 4, 4, 0), "words")


def examples(count: int):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


def read(function, *arguments) -> None:
    try:
        function(*arguments)
    except InputError as error:
        assert str(error)


def mutate(data: st.DataObject, value: dict) -> dict:
    """Replaces something in a JSON object, at any depth."""
    value = json.loads(json.dumps(value))
    target = value
    while True:
        key = data.draw(st.sampled_from(sorted(target)) | st.text(max_size=5))
        if isinstance(target.get(key), dict) and target[key] and data.draw(st.booleans()):
            target = target[key]
            continue
        target[key] = data.draw(JSON)
        return value


def fuzz_config(data, directory):
    model = ModelConfig(4, lstms=(LSTMConfig(3),), dense=(DenseConfig(2),), dropout_rates=(0.1, 0.2, 0.3))
    save_config(directory, RunConfig(model, TrainConfig(), ScheduleConfig(), "data", 3, {"train": "x"}))
    value = json.loads((directory / "config.json").read_text())
    version = value.pop("format")
    write_json(directory / "config.json", mutate(data, {k: v for k, v in value.items() if k != "checksum"}), version)
    read(load_config, directory)


def fuzz_vocabulary(data, directory):
    value = {"tokenization": "words", "words": list(VOCABULARY.words), "counts": list(VOCABULARY.counts)}
    write_json(directory / "vocabulary.json", mutate(data, value), 1)
    read(Vocabulary.load, directory / "vocabulary.json")


def fuzz_bytes(data, directory):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(40, dtype=np.int32) % 4)
    good = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    content = data.draw(st.binary(max_size=200) | st.just(bytes(good[: data.draw(st.integers(0, len(good)))])))
    for name in ("tokens.npy", KERAS_IDS_FILE, "vocabulary.json", "config.json"):
        (directory / name).write_bytes(content)
    read(load_tokens, directory / "tokens.npy", VOCABULARY)
    read(KerasIds.load, directory, len(VOCABULARY))
    read(Vocabulary.load, directory / "vocabulary.json")
    read(load_config, directory)


def fuzz_kept_model(data, directory):
    """Also what Keras would make of it is the model, or one `InputError`."""
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, None], "dtype": "int32", "name": "ids"}},
        {"class_name": "Embedding", "config": {"name": "e", "input_dim": 4, "output_dim": 3}},
        {"class_name": "LSTM", "config": {"name": "l", "units": 5, "return_sequences": True, "dropout": 0.1}},
        {"class_name": "Dense", "config": {"name": "d", "units": 2, "activation": "relu"}},
        {"class_name": "Dense", "config": {"name": "s", "units": 4, "activation": "softmax"}},
    ]
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": {str(i): x for i, x in enumerate(layers)}}}
    model = mutate(data, model)
    inner = model.get("config")
    if isinstance(inner, dict) and isinstance(inner.get("layers"), dict):
        inner["layers"] = list(inner["layers"].values())
    kept_model.save(directory, model)
    config = ModelConfig(4, 3, 5, dense=(DenseConfig(2, "relu"),))
    read(kept_model.load, directory, config)


FUZZERS = [fuzz_kept_model, fuzz_config, fuzz_vocabulary, fuzz_bytes]


@pytest.mark.parametrize("fuzz", FUZZERS)
@examples(100)
@given(data=st.data())
def test_anything_is_read_or_refused(fuzz, data, tmp_path):
    fuzz(data, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fuzz", FUZZERS)
@examples(2000)
@given(data=st.data())
def test_thousands_are_read_or_refused(fuzz, data, tmp_path):
    fuzz(data, tmp_path)
