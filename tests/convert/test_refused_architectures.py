"""Architectures that jaxlm cannot compute are refused, from every form of both versions of Keras."""

import pytest
from architecture_helpers import V, keras_module, lstm, softmax

import convert
from convert.files.source_file import read_source
from jaxlm.errors import InputError

REFUSED = {
    "bidirectional": (
        lambda k: [k.layers.Embedding(V, 5), k.layers.Bidirectional(lstm(k), name="x"), softmax(k)],
        "'x'",
    ),
    "gru": (lambda k: [k.layers.Embedding(V, 5), k.layers.GRU(7, return_sequences=True, name="x"), softmax(k)], "'x'"),
    "hard": (
        lambda k: [k.layers.Embedding(V, 5), lstm(k, recurrent_activation="hard_sigmoid"), softmax(k)],
        "hard_sig",
    ),
    "relu": (lambda k: [k.layers.Embedding(V, 5), lstm(k, activation="relu"), softmax(k)], "'relu'"),
    "norm": (lambda k: [k.layers.Embedding(V, 5), lstm(k), k.layers.BatchNormalization(name="x"), softmax(k)], "'x'"),
}


@pytest.mark.parametrize("version", [3, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_from_every_form(name, version, tmp_path):
    k, (make, message) = keras_module(version), REFUSED[name]
    model = k.Sequential(make(k))
    model.build((None, None))
    with pytest.raises(InputError, match=message):
        convert.from_keras(model)
    forms = ["a.keras", "a.h5"] + (["a"] if version == 2 and name == "hard" else [])
    for form in forms:
        model.save(tmp_path / form, **({"save_format": "tf"} if form == "a" else {}))
        with pytest.raises(InputError, match=message) as raised:
            read_source(tmp_path / form)
        assert "\n" not in str(raised.value)


def test_time_major_is_refused():
    k = keras_module(2)
    ids = k.Input((None,), dtype="int32")
    hidden = k.layers.LSTM(7, return_sequences=True, time_major=True)(k.layers.Embedding(V, 5)(ids))
    with pytest.raises(InputError, match=r"time_major=False\. Received: True"):
        convert.from_keras(k.Model(ids, softmax(k)(hidden)))
