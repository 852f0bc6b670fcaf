"""Keras' files of all generations are read, and damaged, unsafe and foreign ones refused in one line."""

import importlib.util
import io
import json
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
from keras import layers

from convert import comparison, export, keras_reader
from convert.cli import app
from convert.comparison import of_language_model
from convert.keras_model import subject as keras_model_subject
from convert.weights import language_model_weights
from jaxlm.cli import run_command
from jaxlm.errors import InputError

V = 23
MUTATIONS = 60  # of each form


def convert(*arguments: object) -> int:
    return run_command(lambda: app.cli(args=[str(argument) for argument in arguments]))


@pytest.fixture
def keras_model():
    embed, lstm = layers.Embedding(V, 7, name="mine"), layers.LSTM(7, return_sequences=True, dropout=0.1)
    model = keras.Sequential([embed, lstm, layers.LSTM(7, return_sequences=True, name="a")])
    model.add(layers.Dense(V, activation="softmax"))
    model.build((None, None))
    return model


def assert_same(model, keras_model):
    expected = [array for layer in keras_model.layers for array in layer.get_weights()]
    ours = language_model_weights(model)
    ours["weights"] = ours["weights"].T
    order = ["embedding", *(f"lstms/{n}/{w}" for n in (0, 1) for w in ("kernel", "recurrent_kernel", "bias"))]
    for name, array in zip([*order, "weights", "biases"], expected, strict=True):
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_files_of_keras_3(keras_model, tmp_path, name):
    path = tmp_path / name
    keras_model.compile("adam", "sparse_categorical_crossentropy")
    keras_model.fit(np.zeros((1, 3)), np.zeros((1, 3)), verbose=0)  # the optimizer's state is in the file, too
    keras_model.save_weights(path) if "weights" in name else keras_model.save(path)
    model = keras_reader.read_file(path)
    assert_same(model, keras_model)
    with keras_reader.open_file(path) as source:
        assert (source.config is not None) == ("weights" not in name)
    assert comparison.compare(of_language_model(model), export.subject(path)).holds


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5", "only_weights.h5"])
def test_files_of_keras_2(tmp_path, name):
    tf_keras = pytest.importorskip("tf_keras", reason="Keras 2 is not installed: pip install tf_keras")
    two = tf_keras.layers
    model = tf_keras.Sequential([two.Embedding(V, 7, mask_zero="weights" not in name)])
    model.add(two.LSTM(7, return_sequences=True))
    model.add(two.LSTM(7, return_sequences=True))
    model.add(two.Dense(V, activation="softmax"))
    model.build((None, None))
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    read = keras_reader.read_file(path)
    assert_same(read, model)
    assert comparison.compare(of_language_model(read), export.subject(path)).holds
    ids = np.arange(1, V)[None]
    np.testing.assert_allclose(np.asarray(jax.nn.softmax(read(ids)[0])), model(ids), atol=1e-6)


def test_exported_weights_load_into_the_users_own_model(random_run, tmp_path):
    run, path = random_run(1), tmp_path / "a.weights.h5"
    export.export(run, path)
    model = keras.Sequential([layers.Embedding(V, 5), layers.LSTM(7, return_sequences=True)])
    model.add(layers.Dense(V, activation="softmax"))
    model.build((None, None))
    model.load_weights(path)
    ids = np.arange(V)[None]
    expected = jax.nn.softmax(run.model(ids)[0])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(ids)), expected, atol=1e-6)


def refused(path, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        export.subject(path)
    assert "\n" not in str(raised.value)


def test_archives_that_lead_out_or_run_code_are_refused(keras_model, tmp_path):
    path, good = tmp_path / "a.keras", tmp_path / "good.keras"
    keras_model.save(good)
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in ("../escape", "/etc/escape", "assets/../../escape", "a\\..\\..\\escape"):
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in (members | {name: b"x"}).items():
                archive.writestr(member, data)
        refused(path, "leads out of it")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.keras", "good.keras"}
    marker = tmp_path / "ran"
    changes = [
        ("os", "system", {"command": f"touch {marker}"}, "not a class of Keras"),
        ("builtins", "exec", {}, "not a class of Keras"),
        ("keras.layers", "Lambda", {"name": "evil"}, "'evil' .Lambda. cannot be converted"),
        ("keras.layers", "TorchModuleWrapper", {"name": "evil"}, "'evil'"),
    ]
    for module, kind, config, message in changes:
        changed = json.loads(members["config.json"])
        changed["config"]["layers"][2] |= {"module": module, "class_name": kind, "config": config}
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in (members | {"config.json": json.dumps(changed).encode()}).items():
                archive.writestr(member, data)
        refused(path, message)
    changed = json.loads(members["config.json"])
    changed["config"]["layers"][2]["config"]["kernel_initializer"] |= {"module": "os", "class_name": "system"}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in (members | {"config.json": json.dumps(changed).encode()}).items():
            archive.writestr(member, data)
    refused(path, "not a class of Keras")
    assert not marker.exists()


def test_lambdas_and_custom_classes_saved_by_keras_are_refused(tmp_path):
    @keras.saving.register_keras_serializable(package="mine")
    class Custom(layers.Layer):
        def call(self, inputs):
            return inputs

    for layer in (layers.Lambda(lambda x: x), Custom()):
        model = keras.Sequential([keras.Input((None,)), layers.Embedding(V, 5), layer])
        for name in ("a.keras", "a.h5"):
            model.save(tmp_path / name)
            refused(tmp_path / name, "Lambda|Custom")


def test_hdf5_that_holds_or_points_to_anything_else_is_refused(keras_model, tmp_path):
    path = tmp_path / "a.weights.h5"
    names = {"object": "none of|no array", "external": "no array", "link": "not those of", "missing": "not those of"}
    for change, message in names.items():
        keras_model.save_weights(path)
        with h5py.File(path, "r+") as file:
            del file["layers/dense/vars/1"]
            if change == "object":
                file.create_dataset("layers/dense/vars/1", data=["x"] * V, dtype=h5py.string_dtype())
            elif change == "external":
                place = [(str(tmp_path / "secret"), 0, 4 * V)]
                file.create_dataset("layers/dense/vars/1", (V,), "f4", external=place)
            elif change == "link":
                file["layers/dense/vars/1"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        refused(path, message)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_layers_whose_names_run_against_their_order(tmp_path, name):
    top, ids = layers.LSTM(7, return_sequences=True, name="lstm"), keras.Input((None,), dtype="int32")
    bottom = layers.LSTM(7, return_sequences=True, name="lstm_1")
    hidden = top(bottom(layers.Embedding(V, 7, name="embedding")(ids)))
    model = keras.Model(ids, layers.Dense(V, activation="softmax", name="dense")(hidden))
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    parity = comparison.compare(of_language_model(keras_reader.read_file(path)), keras_model_subject(model))
    assert parity.holds, str(parity)
    assert comparison.compare(keras_model_subject(model), export.subject(path)).holds


def test_weights_of_an_archive_are_read_whole_or_not_at_all(random_run, tmp_path):
    path = tmp_path / "a.keras"
    export.export(random_run(), path)
    truth = jax.tree.leaves(keras_reader.read_file(path))

    class Slow(io.FileIO):
        def readinto(self, buffer):  # as the operating system does with more than 2 GB
            return super().readinto(memoryview(buffer)[:100])

    with zipfile.ZipFile(path) as archive, keras_reader._member(path, archive) as member:
        whole, member.file = archive.read("model.weights.h5"), Slow(path)
        buffer = bytearray(len(whole))
        assert member.readinto(buffer) == len(whole) and bytes(buffer) == whole
        with pytest.raises(EOFError):
            member.readinto(buffer)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    for one, two in zip(jax.tree.leaves(keras_reader.read_file(tmp_path / "b.keras")), truth, strict=True):
        np.testing.assert_array_equal(one, two)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"model.weights.h5"))
    data[entry + 24 : entry + 28] = (int.from_bytes(data[entry + 24 : entry + 28], "little") + 8).to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, "")


def test_models_of_several_inputs_are_refused(tmp_path):
    ids, h, c = keras.Input((None,), dtype="int32"), keras.Input((7,)), keras.Input((7,))
    hidden = layers.LSTM(7, return_sequences=True)(layers.Embedding(V, 7)(ids), initial_state=[h, c])
    model = keras.Model([ids, h, c], layers.Dense(V, activation="softmax")(hidden))
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
        refused(tmp_path / name, "its input is")


def test_nan_wrong_sizes_and_wrong_places_are_refused(keras_model, random_run, run_dir, tmp_path, capsys):
    path = tmp_path / "a.h5"
    weights = keras_model.get_weights()
    weights[2][3] = np.nan
    keras_model.set_weights(weights)
    keras_model.save(path)
    with pytest.raises(InputError, match="lstm_1/lstm_cell/recurrent_kernel: it has NaN"):
        keras_reader.read_file(path)
    random = of_language_model(random_run().model)
    assert not comparison.compare(random, export.subject(path)).holds
    (tmp_path / "directory.keras").mkdir()
    refused(tmp_path / "directory.keras", "directory")
    refused(tmp_path / "none.keras", "does not exist")
    export.export(random_run(), tmp_path / "good.keras")
    words = run_dir / "vocabulary.json"
    assert convert("from-keras", tmp_path / "good.keras", tmp_path / "run", "--vocabulary", words) == 2
    assert "120 words, and the model 23" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    run = random_run()
    run.model.lstms[0].bias[...] = run.model.lstms[0].bias[...].at[2].set(np.nan)
    onnx = ["b.onnx"] if importlib.util.find_spec("onnxruntime") else []
    for name in ("b.keras", *onnx, "b.tflite", "b"):
        with pytest.raises(InputError, match="lstms/0/bias: it has NaN"):
            export.export(run, tmp_path / name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.h5", "directory.keras", "good.keras"}


def test_a_disk_that_is_too_small_is_told_before(random_run, tmp_path, monkeypatch):
    usage = export.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(InputError, match="MB are free"):
        export.export(random_run(), tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A truncated file, one with flipped bits, or one with a piece overwritten."""
    changed = bytearray(data)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(changed[: rng.integers(len(changed))])
    if kind == 1:
        for place in rng.integers(len(changed), size=rng.integers(1, 20)):
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    start = int(rng.integers(len(changed)))
    changed[start : start + 64] = rng.bytes(min(64, len(changed) - start))
    return bytes(changed)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_mutated_files_are_read_right_or_refused_in_one_line(random_run, tmp_path, name):
    """What can be told (a checksum, a structure, a NaN) is told; changed numbers in plain HDF5 cannot be."""
    path = tmp_path / name
    export.export(random_run(1), path)
    data, truth = path.read_bytes(), keras_reader.read_file(path)
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(data, rng))
        try:
            model = keras_reader.read_file(path)
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
            continue
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
        if name == "a.keras":  # every byte of it that counts has a checksum
            for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(truth), strict=True):
                np.testing.assert_array_equal(one, two)
    assert refusals > MUTATIONS // 3
