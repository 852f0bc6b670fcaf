"""Architectures that people publish, in every form of both versions of Keras: read, compared, changed, given back."""

import dataclasses
import itertools
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from architecture_helpers import (
    ARCHITECTURES,
    TOLERANCES,
    V,
    assert_equal_function,
    keras_module,
    lstm,
    make_model,
    softmax,
)
from flax import nnx
from helpers import quick_if

import convert
import jaxlm
from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files import run_directory
from convert.files.export import export
from convert.files.importing import import_run
from convert.files.source_file import read_source
from convert.keras_models.json_config import function_name, map_objects
from convert.keras_models.live_layers import chain, weight_variables
from convert.weights.table import language_model_weights, model_from_weights, to_keras_weights


def moved(language_model: jaxlm.LanguageModel) -> jaxlm.LanguageModel:
    """Adds random numbers to all weights."""
    rng, weights = np.random.default_rng(3), language_model_weights(language_model)
    weights = {name: array + rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in weights.items()}
    if not language_model.config.softmax_bias:
        weights["biases"][:] = 0
    return model_from_weights(weights, language_model.config)


FORMS = ["a.keras", "a.h5", "a.hdf5", "a.weights.h5"]
QUICK = "published tutorial"  # in every form
VARIED = {
    QUICK,
    "sizes and biases",
    "dropouts",
    "wrapped",
    "stateful",
    "mixed_float16",
}  # the others differ less from each other


@pytest.mark.parametrize(
    ("name", "version"),
    quick_if(
        lambda name, version: name == QUICK or version == 3 and name in VARIED, itertools.product(ARCHITECTURES, [3, 2])
    ),
)
def test_live(name, version):
    k = keras_module(version)
    model = make_model(name, k, functional=version == 3)
    config = model.get_config()
    language_model = convert.from_keras(model)
    assert_equal_function(language_model, model, name)
    language_model = moved(language_model)
    convert.load_into_keras(language_model, model)
    assert_equal_function(language_model, model, name)
    assert model.get_config() == config


@pytest.mark.parametrize(
    ("name", "form", "version"),
    quick_if(
        lambda name, form, version: (
            name == QUICK
            or (form, version) in (("a.keras", 3), ("a.h5", 2))
            or (form == "a.weights.h5" and name in ("dense layers", "sizes and biases", "wrapped"))
        ),
        itertools.product(ARCHITECTURES, FORMS, [3, 2]),
    ),
)
def test_files(name, form, version, tmp_path):
    model = make_model(name, keras_module(version), functional=form != "a.keras")
    path = tmp_path / form
    model.save_weights(path) if "weights" in form else model.save(path)
    source = read_source(path)
    comparison = compare(language_model_predictor(source.model), source.predictor)
    assert comparison.within_tolerance, str(comparison)
    if form == "a.weights.h5" and name in ("dense layers", "wrapped"):
        assert any("relu" in text for text in source.assumed)  # which these files do not say, and here is wrong
        return
    assert_equal_function(source.model, model, name)
    assert ("as read by jaxlm" in source.predictor.name) == ("weights" in form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "version"),
    quick_if(
        lambda name, version: name == QUICK or (name, version) in (("stateful", 3), ("mixed_float16", 3)),
        itertools.product(ARCHITECTURES, [3, 2]),
    ),
)
def test_saved_models(name, version, tmp_path):
    model = make_model(name, keras_module(version))
    model.export(tmp_path / "a", verbose=False) if version == 3 else model.save(tmp_path / "a", save_format="tf")
    source = read_source(tmp_path / "a")
    comparison = compare(language_model_predictor(source.model), source.predictor)
    assert comparison.within_tolerance and comparison.max_difference < TOLERANCES.get(name, 1e-4), str(comparison)
    assert_equal_function(source.model, model, name)


@pytest.mark.parametrize(
    ("name", "loss"),
    quick_if(
        lambda _, loss: loss == "sampled_softmax",
        itertools.product(["dense layers", "sizes and biases", "wrapped"], ["full", "sampled_softmax"]),
    ),
)
def test_gradients_are_those_of_keras(name, loss):
    """All classes drawn with equal probability make the sampled softmax the exact one."""
    import tensorflow as tf

    model = make_model(name, keras)
    language_model = convert.from_keras(model)
    settings = {"num_sampled": V, "sampler": "uniform", "optimizer": "sgd", "clip_norm": 0.0}
    config = jaxlm.TrainConfig(batch_size=2, sequence_length=6, loss=loss, compute_dtype="float32", **settings)
    before = language_model_weights(language_model)
    before = {key: array.copy() for key, array in before.items()}
    language_model = jaxlm.LanguageModel(dataclasses.replace(language_model.config, dropout_rates=()), rngs=nnx.Rngs(0))
    state = jaxlm.TrainState.create(model_from_weights(before, language_model.config), config)
    ids, labels = np.random.default_rng(3).integers(0, V, (2, 2, 6)).astype(np.int32)
    state, _ = jaxlm.train_step(state, (ids, labels), 1.0)
    after = language_model_weights(state.model)
    moved = to_keras_weights({key: before[key] - after[key] for key in before}, language_model.config)
    variables = [variable for layer in chain(model) for variable in weight_variables(layer)]
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, model(ids)))
    gradients = tape.gradient(value, [variable.value for variable in variables])
    for (key, ours), theirs in zip(moved.items(), gradients, strict=True):
        np.testing.assert_allclose(ours, tf.convert_to_tensor(theirs), atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("name", "form"),
    quick_if(
        lambda name, form: name == QUICK or (name, form) == ("wrapped", "a.keras"),
        itertools.product(ARCHITECTURES, FORMS[:2]),
    ),
)
def test_a_run_gives_back_the_model_that_it_came_from(name, form, tmp_path):
    model, words = make_model(name, keras, functional=form == "a.keras"), tmp_path / "words.txt"
    model.save(tmp_path / form)
    words.write_text("\n".join(f"w{i}\t{i}" for i in range(V - 2)) + "\n<unk>\t9\n<eos>\t5\n")
    list(import_run(tmp_path / form, tmp_path / "run", words, "<unk>", "<eos>", "words"))
    run = run_directory.load(tmp_path / "run")
    assert_equal_function(run.model, model, name)
    run = run._replace(model=moved(run.model))
    exported = tmp_path / f"exported{form}"
    comparison = export(run, exported)
    assert comparison.within_tolerance
    config = model.get_config()
    if name == "function":  # a file cannot say whose function it is; Keras' own is given back
        config = map_objects(config, function_name)
    given_back = keras.models.load_model(exported, compile=False)
    assert without_ids(given_back.get_config()) == without_ids(config)
    assert_equal_function(run.model, given_back, name)


def without_ids(value: Any) -> Any:
    """Returns a config without the numbers by which Keras recognizes shared objects, and without tuples."""
    if isinstance(value, list | tuple):
        return [without_ids(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {key: without_ids(entry) for key, entry in value.items() if key != "shared_object_id"}


def test_a_cudnn_lstm_is_read_as_keras_2_itself_reads_it(tmp_path):
    """Keras 2 turns its weights into those of the equal LSTM when it loads them into one."""
    k = keras_module(2)
    from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

    models = []
    for layer in (CuDNNLSTM(7, return_sequences=True), lstm(k)):
        models.append(k.Sequential([k.layers.Embedding(V, 5), layer, softmax(k)]))
    rng = np.random.default_rng(0)
    cudnn, usual = models
    cudnn.layers[0].build((None, None))
    cudnn.layers[1].build((None, None, 5))
    cudnn.layers[2].build((None, None, 7))
    cudnn.built = True
    for layer in cudnn.layers:
        layer.set_weights([rng.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])
    usual.build((None, None))
    cudnn.save_weights(tmp_path / "a.h5")
    usual.load_weights(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["keras_version"] = "2.2.4"
    source = read_source(tmp_path / "a.h5")
    assert_equal_function(source.model, usual, "cudnn")
    assert "hard_sigmoid" in source.assumed[-1] and "as read by jaxlm" in source.predictor.name


def test_what_is_not_kept_is_said(tmp_path):
    model = make_model("dropouts", keras)
    model.layers[0].trainable = False
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9), clipvalue=0.5, use_ema=True)

    @keras.saving.register_keras_serializable(package="mine")
    def surprise(labels, predictions):
        return keras.losses.sparse_categorical_crossentropy(labels, predictions)

    model.compile(optimizer, surprise, metrics=["accuracy"])
    model.save(tmp_path / "a.keras")
    del keras.saving.get_custom_objects()["mine>surprise"]
    (tmp_path / "words.txt").write_text("\n".join(["<unk>", "<eos>", *(f"w{i}" for i in range(V - 2))]))
    lines = list(import_run(tmp_path / "a.keras", tmp_path / "run", tmp_path / "words.txt", "<unk>", "<eos>", "words"))
    (ignored,) = [line for line in lines if line.startswith("ignored in training")]
    (missing,) = [line for line in lines if line.startswith("not kept in the run: ")]
    for text in (": trainable=False", "recurrent_dropout=0.1", "GaussianNoise(0.3)"):
        assert text in ignored and "restored by to-keras" in ignored
    for text in ("Adam(", "learning_rate=CosineDecay", "clipvalue=0.5", "use_ema=True", "surprise", "accuracy"):
        assert text in missing
    assert lines[-1].endswith(f"jaxlm train DATA --out {tmp_path / 'run'}")
