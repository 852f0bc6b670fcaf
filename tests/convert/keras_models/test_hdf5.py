"""HDF5 weights: anything but arrays of numbers inside the file is refused."""

import h5py
import keras
import pytest
from convert_helpers import assert_refused, make_keras_model
from keras import layers

BIAS = "layers/dense/vars/1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("strings", "is not an array of numbers"),
        ("external", "is not an array of numbers"),
        ("link", "is not an array of numbers inside the file, but a link"),
        ("missing", "is ambiguous|not those of Embedding"),
        ("huge", "is larger than the file"),
    ],
)
def test_a_dataset_that_is_missing_or_elsewhere_is_refused(tmp_path, change, message):
    path = tmp_path / "a.weights.h5"
    make_keras_model().save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["layers/lstm/cell/vars/1" if change == "missing" else BIAS]  # a Dense without bias is none missing
        if change == "strings":
            file.create_dataset(BIAS, data=["x"] * 23, dtype=h5py.string_dtype())
        elif change == "external":
            file.create_dataset(BIAS, (23,), "f4", external=[(str(tmp_path / "secret"), 0, 4 * 23)])
        elif change == "link":
            file[BIAS] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        elif change == "huge":
            file.create_dataset(BIAS, (1 << 40,), "f4", chunks=(1 << 10,))  # no chunk is ever written
    assert_refused(path, message)


def test_a_weight_of_an_unknown_layer_is_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    make_keras_model().save_weights(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("layers/norm/vars/gamma", (7,), "f4")
    assert_refused(path, "Expected weights of Embedding, LSTM and Dense")


@pytest.mark.parametrize("layer", [layers.GRU(5, name="mine"), layers.Bidirectional(layers.LSTM(5))])
def test_another_recurrent_layer_is_refused_by_the_name_of_its_class(tmp_path, layer):
    model = keras.Sequential([layers.Embedding(23, 5), layer, layers.Dense(23)])
    model.build((None, None))
    model.save_weights(tmp_path / "a.weights.h5")
    assert_refused(tmp_path / "a.weights.h5", "Received: those of '(gru|bidirectional/)")


def test_an_ambiguous_order_of_layers_is_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    make_keras_model().save_weights(path)
    with h5py.File(path, "r+") as file:
        file.move("layers/lstm_1", "layers/reader")
    assert_refused(path, "is ambiguous; convert the whole model")
