"""Runs made from Keras models: the same weights, ids sorted by frequency, and training that continues."""

import dataclasses
import json
import logging
import shutil

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from convert_helpers import (
    assert_models_equal,
    make_optimizer_state,
    run_convert,
    run_jaxlm,
)
from keras import layers

from convert.files import run_directory
from convert.files.export import export
from convert.files.importing import import_run
from jaxlm.config import ScheduleConfig
from jaxlm.data.corpus import load_corpus
from jaxlm.errors import InputError
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config, load_model
from jaxlm.runs.loop import train
from jaxlm.runs.restoring import restore_optimizer

SIZES = ("--embedding-size", 7, "--hidden-size", 11, "--num-layers", 2)


def import_with_optimizer(model, run, vocabulary):
    return list(import_run(model, run, vocabulary, "<unk>", "<eos>", "words", keep_optimizer=True))


def test_run_to_keras_to_run_is_bit_identical(run_dir, tmp_path):
    assert run_convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    run = tmp_path / "run"
    assert run_convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", run_dir / "vocabulary.json") == 0
    (ours, words, _), (theirs, same_words, _) = load_model(run_dir), load_model(run)
    assert words == same_words
    assert_models_equal(ours, theirs)


@pytest.mark.slow
def test_jaxlm_continues_to_train_an_imported_model(run_dir, corpus_dir, tmp_path, capsys, caplog):
    assert run_convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    run = tmp_path / "run"
    assert run_convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", run_dir / "vocabulary.json") == 0
    assert "continue with: jaxlm prepare" in capsys.readouterr().out
    assert run_jaxlm("evaluate", run, "--data", corpus_dir, "--max-tokens", 200) == 0
    before = float(capsys.readouterr().out.split("perplexity ")[1].split()[0])
    settings = ("--out", run, "--num-sampled", 20, "--batch-size", 3, "--sequence-length", 4)
    assert run_jaxlm("train", corpus_dir, *settings, *SIZES, "--steps", 2, "--learning-rate", 1e-9) == 0
    after = float(capsys.readouterr().out.split("exact perplexity ")[-1].split()[0])
    assert after < 1.5 * before  # an untrained model is far above
    with caplog.at_level(logging.INFO, "jaxlm"):
        assert run_jaxlm("train", corpus_dir, *settings, *SIZES, "--steps", 4, "--learning-rate", 1e-9) == 0
    assert "resuming from step 2" in caplog.text
    assert run_jaxlm("train", corpus_dir, *settings[:-3], 5, *SIZES) == 2  # after the first step, settings are fixed
    assert run_jaxlm("generate", run, "--num-words", 3) == 0
    assert run_convert("to-keras", run, tmp_path / "again.keras") == 0


@pytest.mark.slow
def test_ids_are_sorted_by_frequency_on_import_and_restored_on_export(run_dir, text_file, tmp_path, capsys):
    """The Keras model's ids are in any order. The exported model has the same ids, and text is read in them."""
    original, vocabulary, _ = load_model(run_dir)
    shuffled = np.random.default_rng(0).permutation(len(vocabulary))
    lines = [f"{vocabulary.words[i]}\t{vocabulary.counts[i]}" for i in shuffled]
    (tmp_path / "words.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run_convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    run = tmp_path / "run"
    assert run_convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", tmp_path / "words.txt") == 0
    assert "not sorted by frequency" in capsys.readouterr().out
    imported, ranked, _ = load_model(run)
    assert ranked.counts == tuple(sorted(vocabulary.counts, reverse=True))
    for rank in (0, 5, len(vocabulary) - 1):  # each word's row moved with it
        keras_id = next(i for i, word in enumerate(shuffled) if vocabulary.words[word] == ranked.words[rank])
        np.testing.assert_array_equal(imported.embedding[rank], original.embedding[keras_id])
    assert run_convert("to-keras", run, tmp_path / "back.keras") == 0
    assert run_convert("verify", tmp_path / "back.keras", tmp_path / "model.keras") == 0
    assert run_convert("verify", run, tmp_path / "model.keras", "--text", text_file, "--max-tokens", 100) == 0
    assert run_jaxlm("prepare", text_file, "--vocabulary", run / "vocabulary.json", "--out", tmp_path / "data") == 0
    assert run_jaxlm("evaluate", run, "--data", tmp_path / "data", "--max-tokens", 50) == 0


@pytest.mark.slow
def test_run_to_keras_to_run_keeps_the_optimizer_and_training_continues_with_it(run_dir, corpus_dir, tmp_path, caplog):
    out, again = tmp_path / "a.keras", tmp_path / "again"
    run = run_directory.load(run_dir, keep_optimizer=True)
    export(run, out)
    lines = import_with_optimizer(out, again, run_dir / "vocabulary.json")
    assert any(f"adam continues after {run.optimizer.steps} steps: --learning-rate 0.03" in line for line in lines)
    assert "--beta-2 0.999 " in lines[-1]
    kept = run_directory.load(again, keep_optimizer=True)
    jax.tree.map(np.testing.assert_array_equal, kept.optimizer.slots, run.optimizer.slots)
    config = load_config(again)
    assert (config.train.optimizer, config.schedule.learning_rate) == ("adam", 0.03)
    # `jaxlm train` starts with it, even if other settings change
    train_config = dataclasses.replace(config.train, batch_size=3, sequence_length=4, num_sampled=20)
    schedule, corpus = ScheduleConfig(steps=1, learning_rate=1e-9), load_corpus(corpus_dir)
    changes = {"averaged": {"average_after": 5}, "sgd": {"optimizer": "sgd"}}
    for name, change in changes.items():
        shutil.copytree(again, tmp_path / name)
        changes[name] = dataclasses.replace(train_config, **change)
        train(corpus, tmp_path / name, config.model, changes[name], schedule, progress=False)
    assert caplog.text.count("the imported optimizer state is not that of sgd") == 1
    train(corpus, again, config.model, train_config, schedule, progress=False)
    trained = run_directory.load(again, keep_optimizer=True)
    assert trained.optimizer.steps == kept.optimizer.steps + 1
    nu, before = (side.optimizer.slots["nu"]["lstms/0/kernel"] for side in (trained, kept))
    assert np.all(nu >= 0.998 * before) and not np.array_equal(nu, before)
    averages = restore_optimizer(Checkpoints(tmp_path / "averaged"), 1, config.model, changes["averaged"])
    np.testing.assert_array_equal(averages["dense"].state[0].nu["lstms"][0]["kernel"], nu)


def test_moments_follow_the_words_when_ids_are_sorted_and_restored(random_run, tmp_path):
    run = random_run(1)
    run = run._replace(optimizer=make_optimizer_state(run.model, "adagrad"))
    export(run, tmp_path / "a.keras")
    counts = np.random.default_rng(0).permutation(run.model.config.vocab_size) + 1
    lines = [f"{word}\t{count}" for word, count in zip(run.words, counts, strict=True)]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    lines = import_with_optimizer(tmp_path / "a.keras", tmp_path / "run", tmp_path / "words.txt")
    assert any("not sorted by frequency" in line for line in lines)
    again = run_directory.load(tmp_path / "run", keep_optimizer=True)
    assert again.words == run.words
    jax.tree.map(np.testing.assert_array_equal, again.optimizer.slots, run.optimizer.slots)
    assert_models_equal(again.model, run.model)


@pytest.mark.parametrize("words", [22, 24])
def test_a_vocabulary_of_another_size_is_refused_before_ids_are_sorted(random_run, tmp_path, words):
    run = random_run(1)
    export(run._replace(optimizer=make_optimizer_state(run.model, "adam")), tmp_path / "a.keras")
    lines = [f"{word}\t{n}" for n, word in enumerate(["<unk>", "<eos>", *(f"w{n}" for n in range(words - 2))])]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"{words} words, the model 23"):
        import_with_optimizer(tmp_path / "a.keras", tmp_path / "run", tmp_path / "words.txt")
    assert not (tmp_path / "run").exists()


def test_only_a_keras_file_can_keep_the_optimizer(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"expected a \.keras file"):
        import_with_optimizer(tmp_path / "a.h5", tmp_path / "run", run_dir / "vocabulary.json")
    assert not (tmp_path / "run").exists()


def test_a_file_that_keras_cannot_load_is_not_imported(run_dir, tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"TFL3")
    with pytest.raises(InputError, match="cannot be imported: expected .keras"):
        list(
            import_run(tmp_path / "a.tflite", tmp_path / "run", run_dir / "vocabulary.json", "<unk>", "<eos>", "words")
        )


@pytest.mark.parametrize("name", ["nothing", "nothing.keras"])
def test_a_missing_model_is_an_input_that_does_not_exist(run_dir, tmp_path, name):
    with pytest.raises(InputError, match=f"{name} does not exist"):
        list(import_run(tmp_path / name, tmp_path / "run", run_dir / "vocabulary.json"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run", "is a run of jaxlm already, not a Keras model"),
        ("v1.5", "is a run of jaxlm"),
        ("empty", "no saved_model"),
    ],
)
def test_a_directory_that_is_no_keras_model_is_refused(run_dir, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    if name != "empty":
        (tmp_path / name).symlink_to(run_dir)
    with pytest.raises(InputError, match=message):
        list(import_run(tmp_path / name, tmp_path / "new", run_dir / "vocabulary.json"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a", "a/ckpt-1", "a/ckpt-1.index", "a/ckpt-1.data-00000-of-00001"])
def test_a_tensorflow_checkpoint_is_named_with_a_way_out(run_dir, tmp_path, name):
    tf.train.Checkpoint(kernel=tf.Variable([1.0])).save(str(tmp_path / "a" / "ckpt"))
    with pytest.raises(InputError, match=r"TensorFlow checkpoint .*restore\(.*ckpt-1'\)"):
        list(import_run(tmp_path / name, tmp_path / "run", run_dir / "vocabulary.json"))


@pytest.mark.exhaustive
def test_a_chain_that_no_option_describes_is_trained_and_given_back(corpus_dir, tmp_path, capsys):
    words = len(json.loads((corpus_dir / "vocabulary.json").read_text())["words"])
    model = keras.Sequential([layers.Embedding(words, 7), layers.LSTM(11, return_sequences=True), layers.LSTM(6)])
    model.add(layers.Dense(9, activation="relu"))
    model.add(layers.Dense(words, activation="softmax"))
    model.build((None, None))
    model.save(tmp_path / "a.keras")
    run, out = tmp_path / "run", tmp_path / "b.keras"
    assert run_convert("from-keras", tmp_path / "a.keras", run, "--vocabulary", corpus_dir / "vocabulary.json") == 0
    assert f"jaxlm train DATA --out {run}\n" in capsys.readouterr().out
    settings = ("--batch-size", 4, "--sequence-length", 5, "--num-sampled", 20, "--eval-tokens", 100, "--steps", 3)
    assert run_jaxlm("train", corpus_dir, "--out", run, *settings) == 0
    assert run_jaxlm("train", corpus_dir, "--out", run, *settings[:-1], 4) == 0  # resumed without options, too
    assert run_jaxlm("evaluate", run, "--max-tokens", 50) == run_jaxlm("generate", run, "--num-words", 3) == 0
    assert run_convert("to-keras", run, out) == run_convert("verify", run, out) == 0
    trained = keras.models.load_model(out)
    assert trained.get_config() == keras.models.load_model(tmp_path / "a.keras").get_config()
    assert all((one != two).any() for one, two in zip(trained.get_weights(), model.get_weights(), strict=True))
    assert run_convert("to-keras", run, tmp_path / "c.keras", "--logits") == 0
    assert run_jaxlm("train", corpus_dir, "--out", run, *settings, "--hidden-size", 12) == 2
