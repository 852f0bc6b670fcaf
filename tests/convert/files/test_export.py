"""Exports: checked before they are in place, whole or not at all, and damaged ones refused."""

import itertools

import keras
import numpy as np
import pytest
from convert_helpers import assert_models_equal, make_optimizer_state, mutated, skip_without
from helpers import BARE, CHAIN, quick_if
from keras import layers

import convert
from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import check_output, export
from convert.files.format_table import load_predictor
from convert.formats import saved_model_weights
from convert.keras_models import reader
from convert.options import ExportOptions
from convert.weights.run_model import RunModel
from jaxlm.errors import InputError

exhaustive = pytest.mark.exhaustive


SHAPES: list[dict] = [{}, CHAIN, BARE, {"projection_size": 5, "tied": True}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    quick_if(
        lambda name, change: (change is CHAIN and name != "a") or (name, change) == ("a.tflite", BARE),
        itertools.product(["a.tflite", "a.onnx", "a"], SHAPES),
    ),
)
def test_formats_without_keras_show_log_probabilities_and_all_states(random_run, tmp_path, name, change):
    skip_without(name)
    logits = "softmax_bias" in change or "tied" in change
    run = random_run(2 if "lstms" in change else 3, **change)
    comparison = export(run, tmp_path / name, ExportOptions(logits=logits))
    states = {f"{state}_{n}" for state in "hc" for n in range(1, len(run.model.config.lstms) + 1)}
    assert {row.quantity for row in comparison.differences} == {"log-probabilities"} | states
    exported = load_predictor(tmp_path / name)
    again = compare(language_model_predictor(run.model), exported._replace(shape=(3, 11)))
    assert again.within_tolerance, str(again)


@pytest.mark.parametrize(
    "name", ["a.keras", *(pytest.param(name, marks=exhaustive) for name in ("a.h5", "a.weights.h5", "a"))]
)
@pytest.mark.parametrize("change", [{"projection_size": 4}, {"projection_size": 5, "tied": True}])
def test_bottlenecks_and_tied_rows_come_back_bit_for_bit(random_run, tmp_path, name, change):
    run = random_run(2, **change)
    export(run, tmp_path / name)
    model = (saved_model_weights.read_weights if name == "a" else reader.read_model)(tmp_path / name)
    assert model.config == run.model.config
    assert_models_equal(model, run.model)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_saved_model_is_replaced_as_a_whole(random_run, tmp_path):
    first, second = random_run(1), random_run(2)
    export(first, tmp_path / "old")
    with pytest.raises(InputError, match="already exists"):
        export(second, tmp_path / "old")
    export(second, tmp_path / "old", overwrite=True)
    assert compare(language_model_predictor(second.model), load_predictor(tmp_path / "old")).within_tolerance
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (ExportOptions(single_step=True), {}, "needs float32 and no `single_step`"),
        (ExportOptions(dtype="float16"), {}, "needs float32 and no `single_step`"),
        (ExportOptions(), {"projection_size": 5, "tied": True}, "two tables"),
    ],
)
def test_an_optimizer_that_keras_could_not_continue_with_is_refused(random_run, tmp_path, options, change, message):
    run = random_run(1, **change)
    with pytest.raises(InputError, match=message):
        export(run._replace(optimizer=make_optimizer_state(run.model, "adam")), tmp_path / "a.keras", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.keras", "a.onnx", "a.tflite", "a"])
def test_nan_weights_are_refused(random_run, tmp_path, name):
    skip_without(name)
    run = random_run()
    run.model.lstms[0].bias[...] = run.model.lstms[0].bias[...].at[2].set(np.nan)
    with pytest.raises(InputError, match="lstms/0/bias: it has NaN"):
        export(run, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_weights_that_keras_cannot_load_from_a_format_are_refused(tmp_path):
    settings = {"dtype": "bfloat16"}
    lstm = layers.LSTM(5, return_sequences=True, recurrent_initializer="glorot_uniform", **settings)
    head = layers.Dense(9, activation="softmax", **settings)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), layers.Embedding(9, 4, **settings), lstm, head])
    description = keras.saving.serialize_keras_object(model)
    run = RunModel(convert.from_keras(model), tuple("abcdefghi"), "words", description=description)
    with pytest.raises(InputError, match="Keras cannot load bfloat16 weights from .h5; use .keras or .weights.h5"):
        export(run, tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_noticed_before_writing(random_run, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(InputError, match="it needs .* kB, but 0.1 kB are free"):
        export(random_run(), tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="one of .*'savedmodel'"):
        check_output(tmp_path / "a.keras", False, "pickle")


GRAPH, DATA, INDEX = "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"


@pytest.mark.parametrize(
    ("name", "file", "times", "seed"),
    [
        ("a.keras", "", 10, 0),
        ("a.tflite", "", 15, 0),
        ("a.onnx", "", 10, 0),
        pytest.param("a", GRAPH, 5, 0, marks=pytest.mark.slow),
        *(pytest.param("a.tflite", "", 45, seed, marks=exhaustive) for seed in (1, 2, 3)),
        *(pytest.param("a.onnx", "", 45, seed, marks=exhaustive) for seed in (1, 2)),
        *(pytest.param("a", file, 10, 1, marks=exhaustive) for file in (GRAPH, DATA, INDEX)),
    ],
)
def test_a_mutated_file_is_read_or_refused_in_one_line(random_run, tmp_path, name, file, times, seed):
    skip_without(name)
    run, path = random_run(1), tmp_path / name
    export(run, path)
    data, rng = (path / file).read_bytes(), np.random.default_rng(seed)
    refused = 0
    for _ in range(times):
        (path / file).write_bytes(mutated(data, rng))
        try:
            compare(language_model_predictor(run.model), load_predictor(path))  # which shows a difference
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > times // 3
