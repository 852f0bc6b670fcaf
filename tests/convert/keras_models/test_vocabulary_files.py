"""Vocabularies of Keras models: the files that people have of them, and ids that are those of Keras."""

import functools
import gzip
import json
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from convert_helpers import run_convert, run_jaxlm
from helpers import quick_if
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from tf_keras.preprocessing.text import Tokenizer

from convert.files import run_directory
from convert.keras_models.vocabulary_files import read_vocabulary, vocabulary_warnings
from jaxlm.data.corpus import load_corpus
from jaxlm.errors import InputError
from jaxlm.runs.directory import load_config, load_model

TEXTS = ["The whale, the sea!", "the ship: don't go", "Ahab's whale & the whale", "É naïve\tΟΔΟΣ the"]
OTHER = [
    "the unheard whale, AHAB'S\tdon't <unk> <OOV> [UNK]!",
    "É é naïve NAÏVE οδος",
    "",
    "  whale-ship\u00a0sea \u2028 the\u200d",
    "the\u000bsea the\u000csea",
]
DEFAULT_FILTERS = Tokenizer().filters


def make_tokenizer(**settings: object) -> Tokenizer:
    tokenizer = Tokenizer(**settings)
    tokenizer.fit_on_texts(TEXTS)
    return tokenizer


@functools.cache
def make_layer(**settings: object) -> layers.TextVectorization:
    layer = layers.TextVectorization(**settings)
    layer.adapt(TEXTS)
    return layer


def keras_ids_of(path: Path, text: str, **settings: object) -> list[int]:
    """Returns a text's ids as jaxlm encodes it, in the numbering of Keras."""
    vocabulary, keras_ids = read_vocabulary(path, **settings)
    ids = vocabulary.encode(text)
    return (ids if keras_ids is None else keras_ids.tokens_for_keras(ids)).tolist()


TOKENIZERS = [
    {},
    {"oov_token": "<OOV>"},
    {"num_words": 5},
    {"num_words": 5, "oov_token": "<unk>"},
    {"num_words": 100},
    {"filters": ""},
    {"lower": False},
    {"filters": "!,", "oov_token": "UNK"},
]


@pytest.mark.parametrize("settings", TOKENIZERS, ids=str)
@pytest.mark.parametrize("dumped", [False, True])
def test_a_text_has_the_ids_of_a_keras_tokenizer(tmp_path, settings, dumped):
    tokenizer, path = make_tokenizer(**settings), tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.to_json()) if dumped else tokenizer.to_json(), encoding="utf-8")
    for text, expected in zip(TEXTS + OTHER, tokenizer.texts_to_sequences(TEXTS + OTHER), strict=True):
        assert keras_ids_of(path, text) == expected, text


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.text(), st.sampled_from([{}, {"oov_token": "<OOV>"}, {"filters": "#", "lower": False}]))
def test_any_text_has_the_ids_of_a_keras_tokenizer(tmp_path, text, settings):
    text = text.replace("\n", " ")  # in jaxlm a line is a text
    tokenizer = make_tokenizer(**settings)
    tokenizer.fit_on_texts([text])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert keras_ids_of(tmp_path / "tokenizer.json", text) == tokenizer.texts_to_sequences([text])[0]


def test_a_word_index_has_the_ids_of_a_keras_tokenizer(tmp_path):
    tokenizer, path = make_tokenizer(), tmp_path / "index.json"
    path.write_text(json.dumps(tokenizer.word_index))
    for text, expected in zip(TEXTS + OTHER, tokenizer.texts_to_sequences(TEXTS + OTHER), strict=True):
        assert keras_ids_of(path, text) == expected, text
    vocabulary, _ = read_vocabulary(path)
    assert vocabulary.counts is None and vocabulary.unk is None and vocabulary.eos is None


@pytest.mark.parametrize("name", ["words.json", "words.txt", "crlf.txt", "bom.txt", "words.txt.gz"])
def test_a_text_has_the_ids_of_text_vectorization(tmp_path, name):
    layer, path = make_layer(), tmp_path / name
    words = list(map(str, layer.get_vocabulary()))
    text = json.dumps(words) if name.endswith("json") else "\n".join(words)
    data = ("\ufeff" if name == "bom.txt" else "") + text.replace("\n", "\r\n" if name == "crlf.txt" else "\n")
    path.write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    for text in TEXTS + OTHER:
        expected = [i for i in np.asarray(layer(text)).tolist() if i]
        assert keras_ids_of(path, text) == expected, text
    vocabulary, keras_ids = read_vocabulary(path)
    assert (
        vocabulary.counts is None and vocabulary.words[-1] == "" and keras_ids.ids[-1] == 0
    )  # padding, no text has it


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))  # TensorFlow drops NULs at the end
def test_any_text_has_the_ids_of_text_vectorization(tmp_path, text):
    layer = make_layer()
    (tmp_path / "words.json").write_text(json.dumps(list(map(str, layer.get_vocabulary()))))
    assert keras_ids_of(tmp_path / "words.json", text.replace("\n", " ")) == np.asarray(layer(text)).tolist()


def test_the_counts_of_a_keras_tokenizer_are_known(tmp_path):
    tokenizer, path = make_tokenizer(num_words=4, oov_token="<OOV>"), tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    vocabulary, keras_ids = read_vocabulary(path, vocab_size=6)
    total = sum(tokenizer.word_counts.values())
    assert dict(zip(vocabulary.words, vocabulary.counts, strict=True)) == {
        "the": 5,
        "whale": 3,
        "<unk>": total - 8,
        "": 0,
        "<unused 4>": 0,
        "<unused 5>": 0,
    }
    assert keras_ids.words_for_keras(vocabulary.words)[:4] == ("", "<unk>", "the", "whale")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("words.txt", "[UNK]\nthe\n.\n"),
        ("words.txt", "\ufeff[UNK]\r\nthe\r\n.\r\n"),
        ("words.json", json.dumps({"words": ["[UNK]", "the", "."]})),
        ("words.json", json.dumps({"words": ["[UNK]", "the", "."], "counts": [0, 0, 0]})),
        ("words.json", json.dumps(["[UNK]", "the", "."])),
        ("words.json", "\ufeff" + json.dumps({"[UNK]": 0, "the": 1, ".": 2})),
        ("counts.txt", "[UNK]\t9\nthe\t8\n.\t2\n"),
        ("counts.txt", "[UNK] 9\r\nthe 8\r\n. 2"),
    ],
)
def test_words_in_the_order_of_their_ids_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    with pytest.raises(InputError, match=r"`eos`: expected another word than `unk`. Received: '\.'"):
        read_vocabulary(tmp_path / name, unk=".", eos=".")
    vocabulary, keras_ids = read_vocabulary(tmp_path / name, unk="[UNK]", eos=".", tokenization="whitespace")
    assert vocabulary.words == ("<unk>", "the", "<eos>") and keras_ids is None
    assert vocabulary.counts == ((9, 8, 2) if name == "counts.txt" else None)
    assert vocabulary.tokenization == "whitespace"


@pytest.mark.parametrize("key", ["tokenization", "split"])
def test_a_file_that_says_how_text_is_cut_decides(tmp_path, key):
    (tmp_path / "words.json").write_text(json.dumps({"words": ["<unk>", "<eos>"], key: "whitespace"}))
    vocabulary, _ = read_vocabulary(tmp_path / "words.json", tokenization="words")
    assert vocabulary.tokenization == "whitespace"


def test_what_a_vocabulary_lacks_is_told(tmp_path):
    (tmp_path / "words.txt").write_text("the\ndon't\nsea")
    vocabulary, _ = read_vocabulary(tmp_path / "words.txt")
    told = " ".join(vocabulary_warnings(vocabulary))
    for part in ("unknown words (name one with --unk)", "end of a line (name one with --eos)", "counts", '"don\'t"'):
        assert part in told
    vocabulary, _ = read_vocabulary(tmp_path / "words.txt", tokenization="whitespace")
    assert "don't" not in " ".join(vocabulary_warnings(vocabulary))


TOKENIZER = json.loads(make_tokenizer().to_json())
REFUSED = [
    ("a.json", {}, "is not a vocabulary"),
    ("a.json", {"words": "the"}, "is not a vocabulary"),
    ("a.json", {"words": [1, 2]}, "is not a vocabulary"),
    ("a.json", {"words": ["<unk>"], "counts": ["1"]}, "is not a vocabulary"),
    ("a.json", {"words": ["<unk>"], "counts": [10**30]}, "is not a vocabulary"),
    ("a.json", {"words": ["<unk>"], "tokenization": "x"}, "is not a vocabulary"),
    ("a.json", {"the": 2, "sea": 3}, "expected consecutive ids from 0 or 1"),
    ("a.json", {"the": 1, "sea": 1}, "expected consecutive ids from 0 or 1"),
    ("a.json", ["the", "the"], "'the' 2 times"),
    ("a.json", ["", "[UNK]", "<unk>"], "has both '\\[UNK\\]' and '<unk>'; name '<unk>' with `unk`"),
    ("a.json", {"class_name": "Tokenizer", "config": {}}, "does not hold a Keras Tokenizer"),
    ("a.json", TOKENIZER | {"config": TOKENIZER["config"] | {"char_level": True}}, "expected a Tokenizer with"),
    ("a.json", TOKENIZER | {"config": TOKENIZER["config"] | {"split": ","}}, "expected a Tokenizer with"),
    ("a.json", TOKENIZER | {"config": TOKENIZER["config"] | {"word_index": "[]"}}, "does not hold a Keras Tokenizer"),
    ("a.txt", "the\t3\nsea", "Line 2 has no count"),
    ("a.txt", "caf\udce9\n", "is not UTF-8: byte 0xe9 in line 1"),
    ("a.pickle", "x", "tokenizer.to_json()"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_not_a_vocabulary_is_refused(tmp_path, name, value, message):
    text = json.dumps(value) if name.endswith("json") else value
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=message) as error:
        read_vocabulary(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def continue_as_printed(output: str, text: Path, data: Path, *more: object) -> None:
    """Runs the two commands that `from-keras` printed, with the user's text and directory."""
    lines = [line.removeprefix("continue with:").strip() for line in output.splitlines() if " jaxlm " in line]
    assert [line.split()[1] for line in lines] == ["prepare", "train"]
    for line, options in zip(lines, ((), more), strict=True):
        words = [{"TEXT": str(text), "DATA": str(data)}.get(word, word) for word in shlex.split(line)]
        assert run_jaxlm(*words[1:], *options) == 0


@pytest.mark.parametrize("kind", quick_if(lambda kind: kind == "tokenizer", [("tokenizer",), ("text_vectorization",)]))
def test_a_keras_model_with_its_vocabulary_is_trained_as_printed_and_given_back(tmp_path, capsys, kind):
    """The model has more rows than words, as those made with a maximum of words have."""
    if kind == "tokenizer":
        vocabulary, path = make_tokenizer(num_words=30).to_json(), tmp_path / "tokenizer.json"
    else:
        vocabulary, path = "\n".join(make_layer(max_tokens=30).get_vocabulary()), tmp_path / "words.txt"
    path.write_text(vocabulary, encoding="utf-8")
    model = keras.Sequential([layers.Embedding(30, 4), layers.LSTM(5, return_sequences=True)])
    model.add(layers.Dense(30, activation="softmax"))
    model.build((None, None))
    model.save(tmp_path / "model.keras")
    run, data = tmp_path / "my run", tmp_path / "data"
    assert run_convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", path) == 0
    output = capsys.readouterr().out
    assert "ids that are not words" in output
    assert load_model(run)[1].words[-1].startswith("<unused ")  # where the sampler rarely draws
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 30) + "\n", encoding="utf-8")
    more = ("--steps", 2, "--batch-size", 2, "--sequence-length", 3, "--eval-tokens", 50)
    continue_as_printed(output, tmp_path / "text.txt", data, *more)
    assert load_config(run).train.num_sampled == 30
    corpus = load_corpus(data)
    if kind == "text_vectorization":
        assert corpus.vocabulary.counts is None
        np.testing.assert_array_equal(corpus.counts, np.bincount(corpus.train, minlength=30))
    assert "unigram model" in capsys.readouterr().out
    assert run_convert("to-keras", run, tmp_path / "again.keras") == 0
    assert run_convert("to-keras", run, tmp_path / "strings") == 0
    assert run_jaxlm("generate", run, "--prompt", "The whale", "--num-words", 20) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    assert run_jaxlm("generate", run, "--num-words", 1) == 2
    assert "no <eos> to begin with: give a --prompt" in capsys.readouterr().err
    strings = tf.saved_model.load(str(tmp_path / "strings"))
    texts = ["The Whale,", "the whale sea's"]
    best = strings.next_words(tf.constant(texts), tf.constant(3))
    assert best["words"].shape == (2, 3)
    encoded = [run_directory.load(run).words.index(word) for word in ("the", "whale")]
    logits = keras.models.load_model(tmp_path / "again.keras").predict(np.array([encoded]), verbose=0)[0]
    np.testing.assert_allclose(best["probabilities"][0], np.sort(logits[-1])[::-1][:3], rtol=1e-4)
    score = strings.score(tf.constant([texts[0], "the", ""]))
    np.testing.assert_allclose(score["log_probabilities"][0], np.log(logits[0, encoded[1]]), rtol=1e-4)
    assert score["num_words"].numpy().tolist() == [1, 0, 0]  # the first word has nothing before it
    with pytest.raises(tf.errors.InvalidArgumentError, match="no word of the vocabulary"):
        strings.next_words(tf.constant([""]), tf.constant(3))
    assert text.startswith("the whale ") and "<un" not in text
    assert keras.models.load_model(tmp_path / "again.keras").weights[0].shape == (30, 4)
    expected = make_tokenizer().word_index["whale"] if kind == "tokenizer" else make_layer()("whale").numpy()[0]
    assert run_directory.load(run).words.index("whale") == expected


@pytest.mark.parametrize(
    "shape",
    quick_if(
        lambda _: False,  # the test above runs the printed commands, too
        [(["--projection-size", 6],), (["--tied", "--embedding-size", 8],), (["--num-layers", 2],)],
    ),
)
def test_the_printed_commands_run_for_every_shape(corpus_dir, text_file, tmp_path, capsys, shape):
    settings = ["--embedding-size", 6, "--hidden-size", 8, *shape, "--batch-size", 2, "--optimizer", "adagrad"]
    short = ["--steps", 2, "--eval-tokens", 50]
    assert run_jaxlm("train", corpus_dir, "--out", tmp_path / "run", *short, *settings) == 0
    optimizer = [] if "--tied" in shape else ["--keep-optimizer"]
    assert run_convert("to-keras", tmp_path / "run", tmp_path / "a.keras", *optimizer) == 0
    capsys.readouterr()
    arguments = ("--vocabulary", tmp_path / "run" / "vocabulary.json", *optimizer)
    assert run_convert("from-keras", tmp_path / "a.keras", tmp_path / "new", *arguments) == 0
    continue_as_printed(capsys.readouterr().out, text_file, tmp_path / "data", *short)
    assert load_config(tmp_path / "new").train.optimizer == ("adagrad" if optimizer else "adam")
    assert load_config(tmp_path / "new").model == load_config(tmp_path / "run").model
