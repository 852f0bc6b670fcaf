"""Files of all generations of Keras are read; damaged and foreign ones are refused in one line."""

import json
import zipfile
from collections.abc import Iterator

import jax
import keras
import numpy as np
import pytest
from convert_helpers import (
    assert_models_equal,
    assert_refused,
    make_keras_model,
    mutated,
    run_convert,
)
from keras import layers

from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import export
from convert.files.format_table import load_predictor
from convert.keras_models.live_layers import keras_predictor
from convert.keras_models.reader import open_file, read_model
from convert.keras_models.source_json import read_structure_of
from convert.weights.table import model_from_keras_arrays
from jaxlm.errors import InputError

V = 23


def save(model, path) -> None:
    """Saves the whole model, or only its weights if the name says so."""
    model.save_weights(path) if "weights" in path.name else model.save(path)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_a_file_of_keras_3_is_read(tmp_path, name):
    keras_model, path = make_keras_model(), tmp_path / name
    keras_model.compile("adam", "sparse_categorical_crossentropy")
    keras_model.fit(np.zeros((1, 3)), np.zeros((1, 3)), verbose=0)  # so that the file has an optimizer state, too
    save(keras_model, path)
    model = read_model(path)
    assert_models_equal(model, model_from_keras_arrays(keras_model.get_weights()))
    with open_file(path) as source:
        assert (source.description is not None) == ("weights" not in name)
    assert compare(language_model_predictor(model), load_predictor(path)).within_tolerance


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5", "only_weights.h5"])
def test_a_file_of_keras_2_is_read(tmp_path, name):
    tf_keras = pytest.importorskip("tf_keras", reason="Keras 2 is not installed: pip install tf_keras")
    two, path = tf_keras.layers, tmp_path / name
    keras_model = tf_keras.Sequential([two.Embedding(V, 7, mask_zero="weights" not in name)])
    keras_model.add(two.LSTM(7, return_sequences=True))
    keras_model.add(two.LSTM(7, return_sequences=True))
    keras_model.add(two.Dense(V, activation="softmax"))
    keras_model.build((None, None))
    save(keras_model, path)
    model = read_model(path)
    assert_models_equal(model, model_from_keras_arrays(keras_model.get_weights()))
    assert compare(language_model_predictor(model), load_predictor(path)).within_tolerance
    ids = np.arange(1, V)[None]
    np.testing.assert_allclose(np.asarray(jax.nn.softmax(model(ids)[0])), keras_model(ids), atol=1e-6)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_layers_whose_names_contradict_their_order_are_read_in_order(tmp_path, name):
    top, ids = layers.LSTM(7, return_sequences=True, name="lstm"), keras.Input((None,), dtype="int32")
    bottom = layers.LSTM(7, return_sequences=True, name="lstm_1")
    hidden = top(bottom(layers.Embedding(V, 7, name="embedding")(ids)))
    model, path = keras.Model(ids, layers.Dense(V, activation="softmax", name="dense")(hidden)), tmp_path / name
    save(model, path)
    comparison = compare(language_model_predictor(read_model(path)), keras_predictor(model))
    assert comparison.within_tolerance, str(comparison)
    assert compare(keras_predictor(model), load_predictor(path)).within_tolerance


@pytest.mark.parametrize("name", ["a.keras", "a.h5"])
def test_lambdas_and_custom_classes_saved_by_keras_are_refused(tmp_path, name):
    @keras.saving.register_keras_serializable(package="mine")
    class Custom(layers.Layer):
        def call(self, inputs):
            return inputs

    for layer in (layers.Lambda(lambda x: x), Custom()):
        keras.Sequential([keras.Input((None,)), layers.Embedding(V, 5), layer]).save(tmp_path / name)
        assert_refused(tmp_path / name, "Lambda|Custom")


@pytest.mark.parametrize("name", ["a.keras", "a.h5"])
def test_a_model_of_several_inputs_is_refused(tmp_path, name):
    ids, h, c = keras.Input((None,), dtype="int32"), keras.Input((7,)), keras.Input((7,))
    hidden = layers.LSTM(7, return_sequences=True)(layers.Embedding(V, 7)(ids), initial_state=[h, c])
    keras.Model([ids, h, c], layers.Dense(V, activation="softmax")(hidden)).save(tmp_path / name)
    assert_refused(tmp_path / name, "as its only input")


def test_nan_weights_are_refused(random_run, tmp_path):
    keras_model, path = make_keras_model(), tmp_path / "a.h5"
    weights = keras_model.get_weights()
    weights[2][3] = np.nan
    keras_model.set_weights(weights)
    keras_model.save(path)
    with pytest.raises(InputError, match="lstm_1/lstm_cell/recurrent_kernel: it has NaN"):
        read_model(path)
    comparison = compare(language_model_predictor(random_run().model), load_predictor(path))
    assert not comparison.within_tolerance


def test_a_vocabulary_of_another_size_is_refused(random_run, run_dir, tmp_path, capsys):
    export(random_run(), tmp_path / "good.keras")
    words = run_dir / "vocabulary.json"
    assert run_convert("from-keras", tmp_path / "good.keras", tmp_path / "run", "--vocabulary", words) == 2
    assert "it has 120 words, the model 23" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_directory_or_nothing_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "directory.keras").mkdir()
    assert_refused(tmp_path / "directory.keras", "is a directory; expected a file")
    assert_refused(tmp_path / "none.keras", "does not exist")


@pytest.mark.parametrize(
    ("seed", "times"), [(0, 12), *(pytest.param(seed, 16, marks=pytest.mark.exhaustive) for seed in (1, 2, 3))]
)
@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_a_mutated_file_is_read_right_or_refused_in_one_line(random_run, tmp_path, name, seed, times):
    """A wrong checksum or structure and NaN are detected. Changed numbers in plain HDF5 cannot be."""
    path = tmp_path / name
    export(random_run(1), path)
    data, truth = path.read_bytes(), read_model(path)
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(times):
        path.write_bytes(mutated(data, rng))
        try:
            model = read_model(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
        if name == "a.keras":  # every byte that matters has a checksum
            assert_models_equal(model, truth)
    assert refused > times // 3


def paths_of(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of every entry at any depth."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths_of(entry, (*path, key))


def replaced(value: object, path: tuple, entry: object) -> object:
    """Returns a copy with another entry at a path."""
    if not path:
        return entry
    items = dict(value) if isinstance(value, dict) else list(value)
    items[path[0]] = replaced(items[path[0]], path[1:], entry)
    return items


def test_a_config_with_an_entry_of_another_type_is_read_or_refused_in_one_line():
    model = keras.Sequential([keras.Input((None,)), layers.Embedding(V, 7), layers.Dropout(0.1)])
    for layer in (layers.LSTM(7, return_sequences=True), layers.TimeDistributed(layers.Dense(5)), layers.Dense(V)):
        model.add(layer)
    config, refused = json.loads(model.to_json()), 0
    for path in paths_of(config):
        for entry in (None, "x", -1, [], {}, {"class_name": []}, 10**30):
            try:
                read_structure_of(replaced(config, path, entry))
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
@pytest.mark.parametrize("value", ["[]", "1", "null", '"x"'])
def test_json_of_another_type_is_read_or_refused(tmp_path, name, value):
    make_keras_model().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(tmp_path / "a.keras", "w") as other:
        for member in good.namelist():
            other.writestr(member, value if member == name else good.read(member))
    if name == "config.json" and value != "null":  # a missing config leaves a file of weights alone
        assert_refused(tmp_path / "a.keras", "its config is not a JSON object")
    else:
        read_model(tmp_path / "a.keras")
