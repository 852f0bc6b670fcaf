"""Runs to Keras: weights by one table, the saved file proven, nothing left of a failure."""

import subprocess
import sys
import zipfile

import jax
import keras
import numpy as np
import pytest
from flax import nnx

from convert import formats, keras_model, verify
from convert.__main__ import app
from convert.weights import from_keras, to_keras, weight_table
from jaxlm.__main__ import run_command
from jaxlm.checkpoint import load_model
from jaxlm.config import InputError, ModelConfig
from jaxlm.model import LanguageModel


def convert(*arguments: object) -> int:
    return run_command(lambda: app.cli(args=[str(argument) for argument in arguments]))


def random_model(num_layers: int = 2, **change: int) -> LanguageModel:
    sizes = {"vocab_size": 23, "embedding_size": 5, "hidden_size": 7} | change
    model = LanguageModel(ModelConfig(num_layers=num_layers, **sizes), rngs=nnx.Rngs(0))
    leaves = nnx.state(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), leaves))
    return model


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_table_serves_both_directions_bit_for_bit(num_layers):
    model = random_model(num_layers)
    weights = keras_model.language_model_weights(model)
    there = to_keras(weights, model.config)
    assert {variable.path: variable.shape for variable in keras_model.build(model.config).weights} == {
        path: array.shape for path, array in there.items()
    }
    back = from_keras(there, model.config)
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array)


def test_unknown_missing_misshapen_and_nan_weights_are_named():
    model = random_model()
    weights = keras_model.language_model_weights(model)
    cases = {
        "lstms/0/kernel": weights["lstms/0/kernel"].T,
        "biases": weights["biases"].astype(np.float64),
        "weights": np.full_like(weights["weights"], np.nan),
        "embedding": np.where(weights["embedding"] > 0.5, np.inf, weights["embedding"]).astype(np.float32),
    }
    for name, array in cases.items():
        with pytest.raises(InputError, match=f"weight {name}:"):
            to_keras(weights | {name: array}, model.config)
    with pytest.raises(InputError, match=r"unknown \['extra'\]"):
        to_keras(weights | {"extra": weights["biases"]}, model.config)
    with pytest.raises(InputError, match=r"missing \['softmax/bias'\]"):
        there = to_keras(weights, model.config)
        from_keras({path: array for path, array in there.items() if path != "softmax/bias"}, model.config)
    assert len(list(weight_table(model.config))) == len(weights)


def test_parity_sees_one_wrong_weight():
    model = random_model()
    exported = keras_model.from_language_model(model)
    assert verify.compare(model, exported).holds
    bias = exported.get_layer("lstm_2").cell.bias
    bias.assign(bias + 1e-3 * np.eye(28, dtype=np.float32)[3])
    parity = verify.compare(model, exported)
    assert not parity.holds and parity.difference < 0.1


def test_keras_model_carries_its_state_through_time_and_takes_any_shape():
    model = random_model()
    exported = keras_model.from_language_model(model)
    for shape in ((1, 1), (3, 17)):
        ids = np.random.default_rng(0).integers(0, 23, shape)
        probabilities = exported.predict(ids, verbose=0)
        assert probabilities.shape == (*shape, 23) and probabilities.dtype == np.float32
        expected = jax.nn.log_softmax(model(ids)[0])
        np.testing.assert_allclose(np.log(probabilities), expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_exported_file_needs_keras_alone(run_dir, tmp_path, backend):
    out = tmp_path / "model.keras"
    assert convert("to-keras", run_dir, out) == 0
    model, vocabulary, _ = load_model(run_dir)
    ids = np.random.default_rng(0).integers(0, len(vocabulary), (2, 6))
    np.save(tmp_path / "ids.npy", ids)
    code = f"""
import sys
sys.modules["jaxlm"] = sys.modules["convert"] = None  # importing them would raise
import keras, numpy
assert keras.backend.backend() == {backend!r}
model = keras.models.load_model({str(out)!r})
numpy.save({str(tmp_path / "out.npy")!r}, model.predict(numpy.load({str(tmp_path / "ids.npy")!r}), verbose=0))
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"KERAS_BACKEND": backend, "HOME": str(tmp_path)}, cwd=tmp_path
    )
    expected = jax.nn.log_softmax(model(ids)[0])
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), expected, atol=1e-4)
    with zipfile.ZipFile(out) as archive:
        assert "jaxlm" not in archive.read("config.json").decode()
    assert convert("verify", run_dir, out) == 0


def test_failures_leave_nothing_and_existing_files_stay(run_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "model.keras"
    out.write_bytes(b"precious")
    assert convert("to-keras", run_dir, out) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)  # no model is as near as that
    assert convert("to-keras", run_dir, out, "--overwrite") == 2
    assert "differs from the run" in capsys.readouterr().err
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    assert convert("to-keras", run_dir, out, "--overwrite") == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.txt", "ends in .keras"), ("no/where/a.keras", "does not exist"), ("directory.keras", "is a directory")],
)
def test_outputs_that_cannot_be_written_are_refused(run_dir, tmp_path, capsys, name, message):
    (tmp_path / "directory.keras").mkdir()
    assert convert("to-keras", run_dir, tmp_path / name) == 2
    assert message in capsys.readouterr().err


def test_nan_weights_are_not_exported(tmp_path):
    model = random_model()
    model.lstms[0].bias[...] = model.lstms[0].bias[...].at[2].set(np.nan)
    with pytest.raises(InputError, match="lstms/0/bias: it has NaN"):
        formats.save_keras(model, tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_keras_files_are_refused(run_dir, tmp_path, capsys):
    model = random_model()
    path = tmp_path / "model.keras"
    formats.save_keras(model, path)
    assert convert("verify", run_dir, path) == 1  # another model: it differs
    capsys.readouterr()
    for data in (path.read_bytes()[:-200], b"", b"PK\x03\x04 nonsense"):
        path.write_bytes(data)
        assert convert("verify", run_dir, path) == 2
        assert "cannot be loaded" in capsys.readouterr().err
    unsafe = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)])
    unsafe.save(path)
    assert convert("verify", run_dir, path) == 2
    assert "cannot be loaded" in capsys.readouterr().err
