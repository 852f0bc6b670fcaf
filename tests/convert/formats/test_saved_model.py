"""SavedModels: the tokens of `jaxlm prepare`, the scores of jaxlm, TensorFlow alone, and imports of Keras' own."""

import itertools
import shutil

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from convert_helpers import assert_models_equal, assert_refused, run_without_jaxlm
from helpers import make_random_model, quick_if
from keras import layers

from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import export
from convert.files.format_table import load_predictor
from convert.formats import saved_model_weights
from convert.weights.run_model import RunModel
from jaxlm.config import DenseConfig
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.inference.scoring import score

WORDS = ("the", "<eos>", "<unk>", ",", "don", "’", "t", "é", "naïve", "x_1", "_", "🎉", "日本語", "½", ".")
VOCABULARY = Vocabulary(WORDS, (0,) * len(WORDS), "words")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = make_random_model(vocab_size=len(WORDS))
    path = tmp_path_factory.mktemp("served") / "model"
    comparison = export(RunModel(model, WORDS, "words"), path)
    assert {row.quantity for row in comparison.differences} >= {"c_1", "h_2", "c_2"}
    return model, tf.saved_model.load(str(path)).signatures, path


def test_next_words_are_the_most_likely_after_the_text(served):
    model, signatures, _ = served
    texts = ["the don’t", "", "zebra 🎉", "the " * 300]
    best = signatures["next_words"](texts=tf.constant(texts), k=tf.constant(4))
    for row, text in enumerate(texts):
        ids = np.concatenate([[WORDS.index("<eos>")], VOCABULARY.encode(text)])
        probabilities = np.asarray(jax.nn.softmax(model(ids[None])[0][0, -1]))
        order = np.argsort(-probabilities)[:4]
        assert [word.decode() for word in best["words"][row].numpy()] == [WORDS[i] for i in order]
        np.testing.assert_allclose(best["probabilities"][row], probabilities[order], rtol=1e-4)


def test_scores_are_the_log_probabilities_of_the_lines(served):
    model, signatures, _ = served
    texts = ["the don’t", "", "zebra 🎉 the naïve", "the " * 100]
    scores = signatures["score"](texts=tf.constant(texts))
    for row, text in enumerate(texts):
        ids = [1, *VOCABULARY.encode(text), 1]
        log_probabilities = np.asarray(jax.nn.log_softmax(model(np.array([ids[:-1]]))[0][0]))
        expected = log_probabilities[np.arange(len(ids) - 1), ids[1:]].sum()
        np.testing.assert_allclose(scores["log_probabilities"][row], expected, rtol=1e-5)
        assert int(scores["num_words"][row]) == len(ids) - 1
    lines = list(score(model, VOCABULARY, texts))
    np.testing.assert_allclose([line.log_probability for line in lines], scores["log_probabilities"], rtol=1e-5)
    assert [line.num_words for line in lines] == scores["num_words"].numpy().tolist()


def test_empty_and_damaged_input_has_a_result(served):
    _, signatures, _ = served
    nothing = tf.constant([], tf.string)
    assert signatures["next_words"](texts=nothing, k=tf.constant(3))["words"].shape == (0, 3)
    assert signatures["score"](texts=nothing)["log_probabilities"].shape == (0,)
    assert signatures["serve"](token_ids=tf.zeros((0, 0), tf.int32))["probabilities"].shape == (0, 0, len(WORDS))
    assert signatures["next_words"](texts=tf.constant(["\xff"]), k=tf.constant(99))["words"].shape == (1, len(WORDS))
    damaged = signatures["score"](texts=tf.constant([b"the \xff\xfe the"]))  # not UTF-8
    assert int(damaged["num_words"][0]) == 5 and np.isfinite(damaged["log_probabilities"]).all()


@pytest.mark.slow
def test_tensorflow_alone_serves_it(served, tmp_path):
    model, _, path = served
    ids = np.random.default_rng(0).integers(0, len(WORDS), (2, 6))
    np.save(tmp_path / "ids.npy", ids)
    code = f"""
import numpy, tensorflow as tf
sys.modules["keras"] = None
signatures = tf.saved_model.load({str(path)!r}).signatures
ids = tf.constant(numpy.load("ids.npy"), tf.int32)
numpy.save("out.npy", signatures["serve"](token_ids=ids)["probabilities"].numpy())
texts = tf.constant(["the naïve", "", "zzz \\U0001f40b", "the " * 5000])
best = signatures["next_words"](texts=texts, k=tf.constant(3))
assert best["words"].shape == (4, 3) and (best["probabilities"][:, 0] >= best["probabilities"][:, 2]).numpy().all()
score = signatures["score"](texts=texts)
assert score["num_words"].numpy().tolist() == [3, 1, 3, 5001] and (score["log_probabilities"] < 0).numpy().all()
"""
    run_without_jaxlm(code, tmp_path)
    expected = jax.nn.log_softmax(model(ids)[0])
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), expected, atol=1e-4)


def test_an_exported_model_comes_back_bit_for_bit(served):
    model, _, path = served
    assert_models_equal(saved_model_weights.read_weights(path), model)


def test_activations_of_small_numbers_are_told_apart(random_run, tmp_path):
    """There tanh(x) is nearly x: either reproduces the predictions within the tolerance, and one of them best."""
    run = random_run(1, dense=(DenseConfig(4, "tanh"), DenseConfig(6)))
    for layer in run.model.dense:
        layer.kernel[...] *= 0.2
        layer.bias[...] *= 0.2
    export(run, tmp_path / "model")
    model, assumed, _ = saved_model_weights.read_model(tmp_path / "model")
    assert_models_equal(model, run.model)
    assert assumed == ("activations, which reproduce the graph's predictions: Dense(4) tanh, Dense(6) linear",)


def keras_3(layers, path):
    model = keras.Sequential([layers.Embedding(23, 5), layers.LSTM(7, return_sequences=True, dropout=0.1)])
    model.add(layers.LSTM(7, return_sequences=True))
    model.add(layers.Dense(23, activation="softmax"))
    model.build((None, None))
    model.export(path, verbose=False)


def keras_2(layers, path):
    import tf_keras

    model = tf_keras.Sequential([layers.Embedding(23, 5), layers.LSTM(7, return_sequences=True), layers.Dense(23)])
    model.compile("adam", "mse")
    model.fit(np.zeros((1, 2)), np.zeros((1, 2, 23)), verbose=0)  # so that it has an optimizer's variables
    model.save(str(path))


@pytest.mark.parametrize("save", [pytest.param(keras_2, marks=pytest.mark.slow), keras_3])
def test_a_saved_model_of_keras_is_read(save, tmp_path):
    package = pytest.importorskip("tf_keras" if save is keras_2 else "keras", reason="Keras 2 is not installed")
    save(package.layers, tmp_path / "model")
    model = saved_model_weights.read_weights(tmp_path / "model")
    assert compare(language_model_predictor(model), load_predictor(tmp_path / "model")).max_difference < 1e-5


@pytest.mark.parametrize(
    ("activation", "dtype"),
    quick_if(
        lambda activation, dtype: (dtype == "float16") == (activation == "softmax"),
        itertools.product(["softmax", None], ["float32", "float16"]),
    ),
)
def test_probabilities_and_logits_are_told_apart_by_the_graph(tmp_path, activation, dtype):
    """Neither their sum, in float16 and with many words, nor their signs decide."""
    dense = layers.Dense(5000, activation=activation, dtype=dtype, bias_initializer="zeros" if activation else "ones")
    model = keras.Sequential([layers.Embedding(5000, 3), layers.LSTM(3, return_sequences=True), dense])
    model.build((None, None))
    model.export(tmp_path / "model", verbose=False)
    ids = np.arange(1, 7).reshape(2, 3)
    theirs = keras.ops.convert_to_numpy(model(ids)).astype(np.float64)
    assert theirs.min() > 0
    expected = np.log(theirs) if activation else jax.nn.log_softmax(theirs)
    predictions = load_predictor(tmp_path / "model").predict(ids)
    np.testing.assert_allclose(predictions.log_probabilities, expected, atol=1e-5 if dtype == "float32" else 0.01)


def test_a_saved_model_of_another_shape_is_refused(tmp_path):
    ids, other = keras.Input((None,), dtype="int32"), keras.Input((3,))
    model = keras.Model([ids, other], [layers.Embedding(5, 3)(ids), layers.ReLU()(other)])
    model.export(tmp_path / "model", verbose=False)
    assert_refused(tmp_path / "model", "expected one input of ids and one output")


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_truncated_saved_model_is_refused(served, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(served[2], copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    assert_refused(copy, "cannot be loaded")
