"""What is written beside what Keras itself writes of the same model: names, types, bytes, configs."""

import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from convert import export, keras_writer
from convert.keras_model import Form, to_keras
from jaxlm.errors import InputError


def contents(path: Path) -> dict[str, tuple]:
    """Everything in an HDF5 file, the description of the model aside."""
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
    """config.json without the numbers by which Keras tells which initializers are one object."""

    def without_ids(value: dict) -> dict:
        return {key: entry for key, entry in value.items() if key != "shared_object_id"}

    return json.loads((directory / "config.json").read_text(), object_hook=without_ids)


@pytest.mark.parametrize("change", [{}, {"projection_size": 3}, {"projection_size": 5, "tied": True}])
@pytest.mark.parametrize(
    "form",
    [
        Form(),
        Form(logits=True, last_only=True),
        Form(single_step=True),
        Form(dtype="float16"),
        Form(single_step=True, dtype="bfloat16"),
    ],
)
def test_a_keras_file_is_what_keras_writes(random_run, tmp_path, form, change, monkeypatch):
    monkeypatch.setattr(keras_writer, "BLOCK", 64)  # many blocks
    run = random_run(3, **change)
    export.export(run, tmp_path / "ours.keras", form=form)
    model = to_keras(run.model, form)
    model.save(tmp_path / "theirs.keras")
    ours, theirs = (unpacked(tmp_path / f"{name}.keras", tmp_path / name) for name in ("ours", "theirs"))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    assert config(ours) == config(theirs)
    assert contents(ours / "model.weights.h5") == contents(theirs / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "ours.keras", safe_mode=True)
    for one, two in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_hdf5_files_are_what_keras_writes(random_run, tmp_path, ending):
    run = random_run(2)
    export.export(run, tmp_path / f"ours{ending}")
    model = keras.Sequential(to_keras(run.model).layers, name="language_model")
    theirs = tmp_path / f"theirs{ending}"
    model.save_weights(theirs) if "weights" in ending else model.save(theirs, include_optimizer=False)
    assert contents(tmp_path / f"ours{ending}") == contents(theirs)
    if ending == ".h5":
        model = keras.models.load_model(tmp_path / "ours.h5")
        expected = to_keras(run.model).get_weights()
        for one, two in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["template.h5", "template.weights.h5", "parts.keras", "model.weights.keras"])
def test_no_name_of_an_output_is_one_that_the_writer_needs(random_run, tmp_path, name):
    export.export(random_run(1), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_disk_that_fills_up_midway_is_an_error_like_any_other(random_run, tmp_path, monkeypatch):
    swapped = keras_writer._swapped

    def full(*arguments):
        yield next(swapped(*arguments))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras_writer, "_swapped", full)
    for name in ("a.keras", "a.h5", "a.weights.h5"):
        with pytest.raises(InputError, match="cannot be written.*No space left"):
            export.export(random_run(), tmp_path / name)
    assert not list(tmp_path.iterdir())
