"""SavedModels: the same tokens as `jaxlm prepare`, the same scores as jaxlm, and imports of Keras' own."""

import hypothesis
import hypothesis.strategies as st
import jax
import keras
import numpy as np
import pytest
import tensorflow as tf

from convert import comparison, export, saved_model
from convert.comparison import of_language_model
from convert.runs import Run
from convert.tf_tokenizer import Words
from jaxlm.errors import InputError
from jaxlm.text import read_chunks
from jaxlm.vocabulary import Vocabulary

WORDS = ("the", "<eos>", "<unk>", ",", "don", "’", "t", "é", "naïve", "x_1", "_", "🎉", "日本語", "½", "a\u0301", ".")
WORDS += ("<", ">", "-", "\u200d", "Straße", "word٣")


def prepared_ids(text: str, vocabulary: Vocabulary, tmp_path) -> list[int]:
    """The ids as `jaxlm prepare` makes them of a file."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("utf-8"))
    return [int(i) for chunk in read_chunks([path]) for i in vocabulary.encode(chunk)]


@pytest.fixture(scope="module", params=["words", "whitespace"])
def words(request):
    vocabulary = Vocabulary(WORDS, (0,) * len(WORDS), request.param)
    return vocabulary, Words(WORDS, request.param)


TEXTS = [
    "the naïve don’t x_1 <unk> <eos> a\u0301 <eo s>",
    "  the\tthe\u00a0the\u3000the\u2028the\x85the\x1cthe\x0bthe\x0cthe ",
    "🎉🎉 👩\u200d👩\u200d👧 日本語 日本 ½½ Straße word٣ word3",
    "one\r\ntwo\rthree\n\nfour",
    "<<unk>> <unk><eos>the<unk>the",
    "\x00the\ufeff\ufffd\U0010ffff\ue000 the\u0000",
    "the " * 5000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_prepare(words, text, tmp_path):
    vocabulary, tables = words
    expected = prepared_ids(text + "\n", vocabulary, tmp_path)
    assert tables.encode(tf.constant([text + "\n", ""])).to_list() == [expected, []]


@hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.lists(st.one_of(st.text(max_size=8), st.sampled_from(WORDS), st.sampled_from(" \n\t")), min_size=1).map("".join)
)
def test_tokens_of_any_text_are_those_of_the_vocabulary(words, text):
    vocabulary, tables = words
    text = text.replace("\r", " ")  # files are read with universal newlines, `encode` is not
    assert tables.encode(tf.constant([text])).to_list() == [vocabulary.encode(text).tolist()]


def test_tokens_of_a_corpus_are_those_of_prepare(text_file, corpus_dir, tmp_path):
    vocabulary = Vocabulary.load(corpus_dir / "vocabulary.json")
    lines = text_file.read_text(encoding="utf-8").splitlines(keepends=True)
    ids = Words(vocabulary.words, vocabulary.split).encode(tf.constant(lines))
    assert ids.flat_values.numpy().tolist() == prepared_ids("".join(lines), vocabulary, tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from conftest import make_random_model

    model = make_random_model(vocab_size=len(WORDS))
    path = tmp_path_factory.mktemp("served") / "model"
    parity = export.export(Run(model, WORDS, "words"), path)
    assert parity.holds and {row.quantity for row in parity.differences} >= {"c_1", "h_2", "c_2"}
    return model, tf.saved_model.load(str(path)).signatures, path


def test_next_words_are_the_likeliest_after_the_text(served):
    model, signatures, _ = served
    texts = ["the don’t", "", "zebra 🎉", "the " * 300]
    best = signatures["next_words"](texts=tf.constant(texts), k=tf.constant(4))
    for row, text in enumerate(texts):
        ids = np.concatenate([[WORDS.index("<eos>")], Vocabulary(WORDS, (0,) * len(WORDS), "words").encode(text)])
        probabilities = np.asarray(jax.nn.softmax(model(ids[None])[0][0, -1]))
        order = np.argsort(-probabilities)[:4]
        assert [word.decode() for word in best["words"][row].numpy()] == [WORDS[i] for i in order]
        np.testing.assert_allclose(best["probabilities"][row], probabilities[order], rtol=1e-4)


def test_scores_are_the_log_probabilities_of_the_lines(served):
    model, signatures, _ = served
    texts = ["the don’t", "", "zebra 🎉 the naïve", "the " * 100]
    scores = signatures["score"](texts=tf.constant(texts))
    for row, text in enumerate(texts):
        ids = [1, *Vocabulary(WORDS, (0,) * len(WORDS), "words").encode(text), 1]
        log_probabilities = np.asarray(jax.nn.log_softmax(model(np.array([ids[:-1]]))[0][0]))
        expected = log_probabilities[np.arange(len(ids) - 1), ids[1:]].sum()
        np.testing.assert_allclose(scores["log_probabilities"][row], expected, rtol=1e-5)
        assert int(scores["num_words"][row]) == len(ids) - 1


def test_nothing_gives_nothing(served):
    _, signatures, _ = served
    nothing = tf.constant([], tf.string)
    assert signatures["next_words"](texts=nothing, k=tf.constant(3))["words"].shape == (0, 3)
    assert signatures["score"](texts=nothing)["log_probabilities"].shape == (0,)
    assert signatures["serve"](token_ids=tf.zeros((0, 0), tf.int32))["probabilities"].shape == (0, 0, len(WORDS))
    assert signatures["next_words"](texts=tf.constant(["\xff"]), k=tf.constant(99))["words"].shape == (1, len(WORDS))
    damaged = signatures["score"](texts=tf.constant([b"the \xff\xfe the"]))  # not UTF-8
    assert int(damaged["num_words"][0]) == 5 and np.isfinite(damaged["log_probabilities"]).all()


def test_own_saved_models_come_back_bit_for_bit(served):
    model, _, path = served
    for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(saved_model.read_weights(path)), strict=True):
        np.testing.assert_array_equal(one, two)


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
    model.fit(np.zeros((1, 2)), np.zeros((1, 2, 23)), verbose=0)  # with an optimizer's variables
    model.save(str(path))


@pytest.mark.parametrize("save", [keras_2, keras_3])
def test_saved_models_of_keras_are_read(save, tmp_path):
    package = pytest.importorskip("tf_keras" if save is keras_2 else "keras", reason="Keras 2 is not installed")
    save(package.layers, tmp_path / "model")
    model = saved_model.read_weights(tmp_path / "model")
    assert comparison.compare(of_language_model(model), export.subject(tmp_path / "model")).difference < 1e-5


def test_damaged_saved_models_are_refused(served, tmp_path):
    import shutil

    _, _, path = served
    for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match="cannot be loaded"):
            export.subject(copy)
        shutil.rmtree(copy)
