"""A run goes on where it was stopped or killed, with the same bits; or says why it does not."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from jaxlm.loop import _Run, fit, known_total_steps

from jaxlm.checkpoint import Checkpoints, RunConfig, load_config, load_model, read_metrics
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.corpus import load_corpus, unigram_loss
from jaxlm.errors import InputError
from jaxlm.evaluation import evaluate
from jaxlm.model import LanguageModel
from jaxlm.train_state import TrainState

TRAIN = TrainConfig(
    batch_size=4, sequence_length=5, num_sampled=20, steps=600, eval_every=60, eval_tokens=40, decay_fraction=0.3
)


def model_config(corpus, **change) -> ModelConfig:
    return ModelConfig(len(corpus.vocabulary), **({"embedding_size": 6, "hidden_size": 8, "dropout": 0.2} | change))


def final_arrays(directory) -> list[np.ndarray]:
    """Every array of the latest checkpoint, moments and LSTM state included."""
    config = load_config(directory)
    checkpoints = Checkpoints(directory, read_only=True)
    abstract = jax.eval_shape(lambda: TrainState.create(LanguageModel(config.model, rngs=nnx.Rngs(0)), config.train))
    state = checkpoints.restore(checkpoints.latest_step(), abstract)
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_killed_and_stopped_runs_end_with_the_same_bits(corpus_dir, tmp_path):
    corpus = load_corpus(corpus_dir)
    fit(corpus, tmp_path / "whole", model_config(corpus), TRAIN, progress=False)
    expected = final_arrays(tmp_path / "whole")
    values = dataclasses.asdict(TRAIN).items()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values if not isinstance(value, bool)]
    flags += ["--embedding-size=6", "--hidden-size=8", "--dropout=0.2"]
    directory = tmp_path / "broken"
    command = [sys.executable, "-m", "jaxlm", "train", str(corpus_dir), f"--out={directory}", *flags]
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        begun = len(read_metrics(directory))
        while len(read_metrics(directory)) < begun + 8 and process.poll() is None:  # in the midst of it
            time.sleep(0.02)
        process.send_signal(signal_number)
        output = process.communicate(timeout=60)[0]
        if signal_number == signal.SIGTERM:
            assert process.returncode == 0
            assert b"going on from step" in output
    assert fit(corpus, directory, model_config(corpus), TRAIN, progress=False) is not None
    for ours, whole in zip(final_arrays(directory), expected, strict=True):
        np.testing.assert_array_equal(ours, whole)
    steps = [row["step"] for row in read_metrics(directory) if "train_loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 600


def test_run_learns_and_keeps_its_best_checkpoint(run_dir, corpus_dir):
    corpus = load_corpus(corpus_dir)
    model, vocabulary, config = load_model(run_dir)
    assert vocabulary == corpus.vocabulary and config.total_steps == 60
    losses = {row["step"]: row["valid_loss"] for row in read_metrics(run_dir) if "valid_loss" in row}
    assert list(losses) == [20, 40, 60]
    loss = evaluate(model, corpus.valid, max_tokens=400).loss
    np.testing.assert_allclose(loss, min(losses.values()), rtol=1e-6)
    assert loss < unigram_loss(corpus.valid, corpus.vocabulary)
    rows = [row for row in read_metrics(run_dir) if "train_loss" in row]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert all(row["words_per_second"] > 0 for row in rows)
    gaps = [row for row in read_metrics(run_dir) if "loss_gap" in row]
    assert len(gaps) == 3 and all(0 < row["loss_gap"] < row["exact_train_loss"] for row in gaps)
    assert list((run_dir / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("change", "word"),
    [({"hidden_size": 9}, "hidden_size=11, not 9"), ({"optimizer": "sgd"}, "optimizer='adam', not 'sgd'")],
)
def test_other_settings_are_refused(run_dir, corpus_dir, change, word):
    corpus = load_corpus(corpus_dir)
    old = load_config(run_dir)
    before = (run_dir / "config.json").read_bytes()
    model = dataclasses.replace(old.model, **{k: v for k, v in change.items() if hasattr(old.model, k)})
    train = dataclasses.replace(old.train, **{k: v for k, v in change.items() if hasattr(old.train, k)})
    with pytest.raises(InputError, match=word):
        fit(corpus, run_dir, model, train, progress=False)
    assert (run_dir / "config.json").read_bytes() == before


def test_other_directories_and_vocabularies_are_refused(run_dir, corpus_dir, tmp_path):
    corpus = load_corpus(corpus_dir)
    old = load_config(run_dir)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and no run"):
        fit(corpus, tmp_path, old.model, old.train, progress=False)
    words = corpus.vocabulary.words
    other = dataclasses.replace(corpus.vocabulary, words=(*words[:-1], "other"))
    with pytest.raises(InputError, match="another vocabulary"):
        fit(corpus._replace(vocabulary=other), run_dir, old.model, old.train, progress=False)


def test_more_candidates_than_words_leave_no_directory(corpus_dir, tmp_path):
    corpus = load_corpus(corpus_dir)
    with pytest.raises(InputError, match="num_sampled"):
        fit(corpus, tmp_path / "run", model_config(corpus), dataclasses.replace(TRAIN, num_sampled=9999))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(corpus_dir, tmp_path):
    corpus = load_corpus(corpus_dir)
    config = dataclasses.replace(TRAIN, steps=10, eval_every=5, warmup_steps=0)
    fit(corpus, tmp_path / "run", model_config(corpus), config, progress=False)
    wild = dataclasses.replace(config, learning_rate=1e38, clip_norm=0.0, optimizer="sgd")
    with pytest.raises(InputError, match="lower --learning-rate"):
        fit(corpus, tmp_path / "wild", model_config(corpus), wild, progress=False)
    steps = Checkpoints(tmp_path / "wild", read_only=True).manager.all_steps()
    assert not steps  # it went wrong before the first


def test_a_finished_run_goes_on_only_when_made_longer(corpus_dir, tmp_path):
    corpus = load_corpus(corpus_dir)
    config = dataclasses.replace(TRAIN, steps=10)
    first = fit(corpus, tmp_path, model_config(corpus), config, progress=False)
    assert fit(corpus, tmp_path, model_config(corpus), config, progress=False) == first
    assert load_config(tmp_path).total_steps == 10
    fit(corpus, tmp_path, model_config(corpus), dataclasses.replace(config, steps=15), progress=False)
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 15


def test_minutes_fix_the_number_of_steps_when_the_decay_begins(corpus_dir, tmp_path):
    config = dataclasses.replace(TRAIN, steps=0, minutes=10.0)  # the decay begins at 70 %: 420 s
    assert known_total_steps(config, 1000) == 0
    parts = load_corpus(corpus_dir).parts
    run = _Run(tmp_path, RunConfig(ModelConfig(9), config, "", 0), parts["valid"], progress=False)
    run.begin_at(0)
    for step in range(1, 402):  # 20 s of compilation, then a step a second
        run.fix_length(step, 20.0 + step)
        assert (run.config.total_steps > 0) == (step >= 400)
    assert run.config.total_steps == load_config(tmp_path).total_steps == 580


def test_length_in_epochs():
    assert known_total_steps(dataclasses.replace(TRAIN, steps=0, epochs=2.5), 201) == 25
    assert known_total_steps(dataclasses.replace(TRAIN, steps=0), 201) == 10


def test_cut_off_metrics_are_read_up_to_the_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
