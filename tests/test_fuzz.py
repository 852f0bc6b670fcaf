"""Readers of config, vocabulary and token files, given anything: the value, or one `InputError`."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.keras_models import source_json
from convert.keras_models.vocabulary_files import read_vocabulary, vocabulary_warnings
from convert.weights.id_order import KERAS_IDS_FILE, KerasIds
from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import load_tokens
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.files import write_json
from jaxlm.runs.directory import RunConfig, load_config, save_config

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


TOKENIZER = {
    "class_name": "Tokenizer",
    "config": {
        "num_words": 4,
        "filters": "!.\n",
        "lower": True,
        "split": " ",
        "char_level": False,
        "oov_token": "<OOV>",
        "word_counts": '{"the": 9, "sea": 4, "whale": 1}',
        "word_index": '{"<OOV>": 1, "the": 2, "sea": 3, "whale": 4}',
    },
}
KERAS_FILES = [TOKENIZER, {"the": 1, "sea": 2}, {"words": ["", "[UNK]", "the"], "counts": None}]


def read_keras_words(path, vocab_size: int) -> None:
    vocabulary, keras_ids = read_vocabulary(path, vocab_size=vocab_size)
    assert len(vocabulary) >= 1 and (keras_ids is None or keras_ids.ids.size == len(vocabulary))
    assert all(0 <= i < len(vocabulary) for i in vocabulary.encode("The whale, the <unk> sea\n"))
    assert all(isinstance(line, str) for line in vocabulary_warnings(vocabulary))


def fuzz_keras_vocabulary(data, directory):
    value = json.loads(json.dumps(data.draw(st.sampled_from(KERAS_FILES))))
    if "config" in value and data.draw(st.booleans()):  # inside of its strings
        key = data.draw(st.sampled_from(["word_counts", "word_index"]))
        inner = json.loads(value["config"][key])
        value["config"][key] = json.dumps(mutate(data, inner) if data.draw(st.booleans()) else data.draw(JSON))
    else:
        words = st.lists(st.text(max_size=4) | st.just("\ud800"), max_size=4)  # half of a surrogate pair
        value = data.draw(st.just(mutate(data, value)) | JSON | words)
    (directory / "words.json").write_text(json.dumps(value), encoding="utf-8")
    read(read_keras_words, directory / "words.json", data.draw(st.integers(0, 9)))


def fuzz_keras_words(data, directory):
    lines = st.lists(
        st.text(max_size=4) | st.sampled_from(["", "[UNK]", "the\t3", "the 3", "sea\t0", "<unk>"]), max_size=5
    )
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    start = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"\0"]))
    content = start + end.join(data.draw(lines)).encode("utf-8", "surrogatepass")
    for name in ("words.txt", "words.gz", "words.json", "words.pkl"):
        (directory / name).write_bytes(content if data.draw(st.booleans()) else data.draw(st.binary(max_size=60)))
        read(read_keras_words, directory / name, data.draw(st.integers(0, 9)))


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
    source_json.save(directory, model)
    config = ModelConfig(4, 3, 5, dense=(DenseConfig(2, "relu"),))
    read(source_json.load, directory, config)


FUZZERS = [fuzz_kept_model, fuzz_config, fuzz_vocabulary, fuzz_bytes, fuzz_keras_vocabulary, fuzz_keras_words]


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
