"""Files beside those that Keras itself writes of the same model, and other processes that load them."""

import json
import zipfile
from pathlib import Path

import h5py
import jax
import keras
import numpy as np
import pytest
from convert_helpers import ROOT, run_python, run_without_jaxlm
from helpers import BARE, CHAIN
from keras import layers

from convert import to_keras
from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import export
from convert.files.format_table import load_predictor
from convert.keras_models import writer
from convert.options import ExportOptions
from convert.weights.run_model import RunModel
from jaxlm.errors import InputError


def contents(path: Path) -> dict[str, tuple]:
    """Returns everything in an HDF5 file, except the description of the model."""
    found: dict[str, tuple] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items() if key != "model_config"}
        array = item[()] if isinstance(item, h5py.Dataset) else None
        found[name] = attributes, None if array is None else (array.dtype, array.shape, array.tobytes())

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def unpacked(path: Path, directory: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.testzip() is None
        archive.extractall(directory)
    return directory


def config(directory: Path) -> dict:
    """Returns config.json without the numbers by which Keras recognizes shared initializers."""

    def without_ids(value: dict) -> dict:
        return {key: entry for key, entry in value.items() if key != "shared_object_id"}

    return json.loads((directory / "config.json").read_text(), object_hook=without_ids)


CHANGES = [{}, {"projection_size": 3}, {"projection_size": 5, "tied": True}, CHAIN, BARE]
OPTIONS = [
    ExportOptions(),
    ExportOptions(logits=True, last_only=True),
    ExportOptions(single_step=True),
    ExportOptions(dtype="float16"),
    ExportOptions(single_step=True, dtype="bfloat16"),
]
USUAL = [(OPTIONS[0], CHANGES[0]), (OPTIONS[4], CHANGES[2]), (OPTIONS[0], CHAIN), (OPTIONS[2], BARE)]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        pytest.param(options, change, marks=[] if (options, change) in USUAL else pytest.mark.exhaustive)
        for options in OPTIONS
        for change in CHANGES
    ],
)
def test_a_keras_file_is_what_keras_writes(random_run, tmp_path, options, change, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK", 64)  # many blocks
    run = random_run(2 if "lstms" in change else 3, **change)
    export(run, tmp_path / "ours.keras", options)
    model = to_keras(run.model, options)
    model.save(tmp_path / "theirs.keras")
    ours, theirs = (unpacked(tmp_path / f"{name}.keras", tmp_path / name) for name in ("ours", "theirs"))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    assert config(ours) == config(theirs)
    assert contents(ours / "model.weights.h5") == contents(theirs / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "ours.keras", safe_mode=True)
    jax.tree.map(np.testing.assert_array_equal, loaded.get_weights(), model.get_weights())


@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_an_hdf5_file_is_what_keras_writes(random_run, tmp_path, ending):
    run = random_run(2)
    export(run, tmp_path / f"ours{ending}")
    model = keras.Sequential(to_keras(run.model).layers, name="language_model")
    theirs = tmp_path / f"theirs{ending}"
    model.save_weights(theirs) if "weights" in ending else model.save(theirs, include_optimizer=False)
    assert contents(tmp_path / f"ours{ending}") == contents(theirs)
    if ending == ".h5":
        model = keras.models.load_model(tmp_path / "ours.h5")
        expected = to_keras(run.model).get_weights()
        jax.tree.map(np.testing.assert_array_equal, model.get_weights(), expected)


def test_exported_weights_load_into_the_users_own_model(random_run, tmp_path):
    run, path = random_run(2, **CHAIN), tmp_path / "a.weights.h5"
    export(run, path)
    model = keras.Sequential([layers.Embedding(23, 5), layers.LSTM(9, return_sequences=True)])
    model.add(layers.LSTM(6, return_sequences=True, use_bias=False))
    model.add(layers.Dense(11, activation="relu"))
    model.add(layers.Dense(4, activation="tanh", use_bias=False))  # which the file does not say
    model.add(layers.Dense(23, activation="softmax"))
    model.build((None, None))
    model.load_weights(path)
    ids = np.arange(23)[None]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(ids)), jax.nn.softmax(run.model(ids)[0]), atol=1e-6)


@pytest.mark.parametrize("name", ["template.h5", "template.weights.h5", "members.keras", "model.weights.keras"])
def test_an_output_may_have_any_name(random_run, tmp_path, name):
    export(random_run(1), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_a_disk_that_fills_up_midway_is_an_ordinary_error(random_run, tmp_path, monkeypatch, name):
    original = writer.filled_template

    def full(*arguments):
        yield next(original(*arguments))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "filled_template", full)
    with pytest.raises(InputError, match="cannot be written.*No space left"):
        export(random_run(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run_with_ids(random_run, tmp_path) -> tuple[RunModel, np.ndarray]:
    """A run, random ids in ids.npy, and jaxlm's log-probabilities of them."""
    run = random_run()
    ids = np.random.default_rng(0).integers(0, len(run.words), (2, 6))
    np.save(tmp_path / "ids.npy", ids)
    return run, np.asarray(jax.nn.log_softmax(run.model(ids)[0]))


@pytest.mark.parametrize(
    "backend", ["jax", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("tensorflow", "torch"))]
)
@pytest.mark.slow
def test_an_exported_file_needs_only_keras(tmp_path, backend, run_with_ids):
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install jaxlm[torch]")
    run, expected = run_with_ids
    export(run, tmp_path / "model.keras")
    code = f"""
import keras, numpy
assert keras.backend.backend() == {backend!r}
model = keras.models.load_model("model.keras")
numpy.save("out.npy", model.predict(numpy.load("ids.npy"), verbose=0))
"""
    run_without_jaxlm(code, tmp_path, KERAS_BACKEND=backend)
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), expected, atol=1e-4)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert "jaxlm" not in archive.read("config.json").decode()
    assert compare(language_model_predictor(run.model), load_predictor(tmp_path / "model.keras")).within_tolerance


def test_an_h5_file_loads_in_keras_2(tmp_path, run_with_ids):
    tf_keras = pytest.importorskip("tf_keras", reason="Keras 2 is not installed: pip install tf_keras")
    run, expected = run_with_ids
    export(run, tmp_path / "model.h5")
    predictions = tf_keras.models.load_model(tmp_path / "model.h5").predict(np.load(tmp_path / "ids.npy"), verbose=0)
    np.testing.assert_allclose(np.log(predictions), expected, atol=1e-4)


@pytest.mark.slow
def test_the_example_predicts_with_keras_alone(random_run, tmp_path):
    run = random_run(1)
    export(run, tmp_path / "model.keras")
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": run.words}))
    script = ROOT / "examples" / "keras_inference.py"
    result = run_python(script, "model.keras", "vocabulary.json", "the word3", cwd=tmp_path, PYTHONPATH="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the word3 ...") and result.stdout.count("%") == 8
