"""A run resumes where it was stopped or killed, with the same bits, or says why it does not."""

import dataclasses
import logging
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import final_arrays

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import Corpus, fingerprints, unigram_loss
from jaxlm.errors import InputError
from jaxlm.inference.perplexity import evaluate
from jaxlm.runs import compilation, loop
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config, load_model
from jaxlm.runs.loop import resume, train
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.restoring import restore_model

TRAIN = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20)
SCHEDULE = ScheduleConfig(steps=600, eval_every=60, eval_tokens=40, decay_fraction=0.3)


def model_config(corpus: Corpus) -> ModelConfig:
    return ModelConfig(len(corpus.vocabulary), embedding_size=6, hidden_size=8, dropout=0.2)


@pytest.mark.slow
def test_killed_and_stopped_runs_end_with_the_same_bits(corpus, corpus_dir, tmp_path):
    train(corpus, tmp_path / "whole", model_config(corpus), TRAIN, SCHEDULE, progress=False)
    expected = final_arrays(tmp_path / "whole")
    settings = dataclasses.asdict(TRAIN) | dataclasses.asdict(SCHEDULE)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if not isinstance(value, bool)]
    flags += ["--embedding-size=6", "--hidden-size=8", "--dropout=0.2"]
    directory = tmp_path / "killed run"
    command = [sys.executable, "-m", "jaxlm", "train", str(corpus_dir), f"--out={directory}", *flags]
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        before = len(read_metrics(directory))
        while len(read_metrics(directory)) < before + 8 and process.poll() is None:  # while it trains
            time.sleep(0.02)
        process.send_signal(signal_number)
        output = process.communicate(timeout=60)[0]
        if signal_number == signal.SIGTERM:
            assert process.returncode == 130
            assert b"resuming from step" in output and f"resume with: jaxlm resume '{directory}'".encode() in output
    assert train(corpus, directory, model_config(corpus), TRAIN, SCHEDULE, progress=False) is not None
    jax.tree.map(np.testing.assert_array_equal, final_arrays(directory), expected)
    steps = [row["step"] for row in read_metrics(directory) if "train_loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 600


def test_a_run_learns_and_keeps_its_best_checkpoint(run_dir, corpus):
    model, vocabulary, config = load_model(str(run_dir))
    assert vocabulary == corpus.vocabulary and config.total_steps == 60
    losses = {row["step"]: row["valid_loss"] for row in read_metrics(run_dir) if "valid_loss" in row}
    assert list(losses) == [20, 40, 60]
    loss = evaluate(model, corpus.valid, max_tokens=400).loss
    np.testing.assert_allclose(loss, min(losses.values()), rtol=1e-6)
    assert loss < unigram_loss(corpus.valid, corpus.counts)
    rows = [row for row in read_metrics(run_dir) if "train_loss" in row]
    assert [row["step"] for row in rows] == [20, 40, 60]
    steps, seconds, speeds = ([row[name] for row in rows] for name in ("step", "seconds", "words_per_second"))
    words = config.train.batch_size * config.train.sequence_length
    np.testing.assert_allclose(speeds[1:], words * np.diff(steps) / np.diff(seconds), rtol=1e-3)
    gaps = [row for row in read_metrics(run_dir) if "loss_gap" in row]
    assert len(gaps) == 3 and all(0 < row["loss_gap"] < row["exact_train_loss"] for row in gaps)
    assert list((run_dir / "tensorboard").iterdir())


def test_a_resumed_run_changes_only_its_schedule(run_dir):
    with pytest.raises(InputError, match="expected fields of ScheduleConfig"):
        resume(run_dir, hidden_size=9)


def test_bad_settings_leave_no_directory(corpus, tmp_path):
    with pytest.raises(InputError, match="`vocab_size`: expected 120, the vocabulary of the corpus"):
        other = dataclasses.replace(model_config(corpus), vocab_size=7)
        train(corpus, tmp_path / "run", other, TRAIN, SCHEDULE)
    with pytest.raises(InputError, match="corpus.valid"):
        damaged = corpus._replace(valid=corpus.valid + len(corpus.vocabulary))
        train(damaged, tmp_path / "run", model_config(corpus), TRAIN, SCHEDULE)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_harms_no_checkpoint(corpus, tmp_path):
    schedule = dataclasses.replace(SCHEDULE, steps=10, eval_every=5, warmup_steps=0, learning_rate=1e38)
    config = dataclasses.replace(TRAIN, clip_norm=0.0, optimizer="sgd")
    with pytest.raises(InputError, match="start again with a lower `learning_rate`, or set a `clip_norm`"):
        train(corpus, tmp_path, model_config(corpus), config, schedule, progress=False)
    assert not Checkpoints(tmp_path).steps()  # it went wrong before the first
    schedule, config = dataclasses.replace(schedule, learning_rate=1e-3), dataclasses.replace(config, clip_norm=10.0)
    assert train(corpus, tmp_path, model_config(corpus), config, schedule, progress=False) is not None  # as it advises


def test_a_diverged_run_goes_back_to_its_best_checkpoint_as_it_advises(corpus, tmp_path, caplog):
    schedule = dataclasses.replace(SCHEDULE, steps=10, eval_every=5, decay_fraction=0.0)
    train(corpus, tmp_path, model_config(corpus), TRAIN, schedule, progress=False)
    resume(tmp_path, steps=20, learning_rate=50.0, progress=False)
    steps = [int(step) for step in re.findall(r"Stop the run, delete the checkpoints after (\d+) in", caplog.text)]
    assert len(steps) == 2 and set(steps) == {10} and "far above" in caplog.text
    for step in Checkpoints(tmp_path).steps():
        if step > 10:
            shutil.rmtree(Checkpoints(tmp_path).directory / str(step))
    caplog.clear()
    assert (
        resume(tmp_path, steps=20, learning_rate=0.001, progress=False).loss
        < unigram_loss(corpus.valid, corpus.counts) + 1
    )
    assert "diverged" not in caplog.text


@pytest.mark.slow
def test_minutes_are_turned_into_steps_and_written_down(corpus, tmp_path):
    schedule = dataclasses.replace(SCHEDULE, steps=0, minutes=0.03, decay_fraction=0.5, eval_every=10**6)
    assert train(corpus, tmp_path, model_config(corpus), TRAIN, schedule, progress=False) is not None
    total_steps = load_config(tmp_path).total_steps
    assert Checkpoints(tmp_path).latest_step() == total_steps > 0
    assert load_config(tmp_path).fingerprints == fingerprints(corpus)  # also after the length was written down
    rates = [row["learning_rate"] for row in read_metrics(tmp_path) if "learning_rate" in row]
    assert rates[0] == pytest.approx(SCHEDULE.learning_rate) and rates[-1] < 0.2 * SCHEDULE.learning_rate


def test_checkpoints_by_steps_and_by_time_come_besides_those_of_evaluations(corpus, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, state, progress: saved.append((step, progress.valid_loss))
    )
    schedule = dataclasses.replace(SCHEDULE, steps=12, eval_every=10, save_steps=4, save_minutes=0.0)
    train(corpus, tmp_path / "steps", model_config(corpus), TRAIN, schedule, progress=False)
    assert [step for step, _ in saved] == [4, 8, 10, 12] and [loss is None for _, loss in saved] == [1, 1, 0, 0]
    saved.clear()
    schedule = dataclasses.replace(schedule, save_steps=0, save_minutes=1e-9)
    train(corpus, tmp_path / "time", model_config(corpus), TRAIN, schedule, progress=False)
    assert [step for step, _ in saved] == list(range(1, 13))


def run_command_until_it_trains(corpus_dir, directory, *flags: str) -> subprocess.Popen:
    sizes = ["--embedding-size=6", "--hidden-size=8", "--batch-size=4", "--sequence-length=5", "--num-sampled=20"]
    command = [sys.executable, "-m", "jaxlm", "train", str(corpus_dir), f"--out={directory}", *sizes, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not read_metrics(directory) and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once(corpus_dir, tmp_path):
    # the first one waits for the evaluation, which takes some seconds
    flags = ("--eval-every=20", "--eval-tokens=0", "--steps=100000", "--hidden-size=300")
    process = run_command_until_it_trains(corpus_dir, tmp_path / "run", *flags)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors


def broken_steps(monkeypatch, *steps: int) -> None:
    """Makes the loss of some steps NaN, as an invalid id in the batch would."""
    step = compilation.step_in_block

    def broken(state, block):
        labels = block.batches.labels  # [steps, batch, time]
        first = state.step - state.step % len(labels)
        invalid = jnp.isin(first + jnp.arange(len(labels)), jnp.array(steps))
        labels = labels.at[:, 0, 0].set(jnp.where(invalid, -1, labels[:, 0, 0]))
        return step(state, block._replace(batches=block.batches._replace(labels=labels)))

    monkeypatch.setattr(compilation, "step_in_block", jax.jit(broken, donate_argnums=0))


def test_steps_that_are_not_finite_are_skipped_and_told(corpus, tmp_path, monkeypatch, caplog):
    broken_steps(monkeypatch, 3, 4, 12)
    schedule = dataclasses.replace(SCHEDULE, steps=20, eval_every=20)
    assert train(corpus, tmp_path, model_config(corpus), TRAIN, schedule, progress=False) is not None
    skipped = [record.args[0] for record in caplog.records if "was skipped" in record.msg]
    assert skipped == [4, 5, 13]
    rows = [row for row in read_metrics(tmp_path) if "train_loss" in row]
    assert np.isfinite([row["train_loss"] for row in rows]).all()
    assert all(np.isfinite(array).all() for array in final_arrays(tmp_path))


@pytest.mark.parametrize(
    ("clip_norm", "save_steps", "advice"),
    [
        (10.0, 0, "There is no checkpoint yet: start again with a lower `learning_rate`, or lower the `clip_norm`"),
        (10.0, 4, "Checkpoint 12 in .* is intact: resume with a lower `learning_rate`"),
    ],
)
def test_too_many_in_a_row_end_the_run_with_the_right_advice(
    corpus, tmp_path, monkeypatch, clip_norm, save_steps, advice
):
    broken_steps(monkeypatch, *range(5, 99))
    schedule = dataclasses.replace(SCHEDULE, steps=99, eval_every=99, save_steps=save_steps)
    config = dataclasses.replace(TRAIN, clip_norm=clip_norm)
    with pytest.raises(InputError, match=f"not finite in 10 steps up to 15. {advice}"):
        train(corpus, tmp_path, model_config(corpus), config, schedule, progress=False)
    if not save_steps:
        return
    monkeypatch.undo()
    schedule = dataclasses.replace(schedule, steps=20, learning_rate=1e-3)
    assert train(corpus, tmp_path, model_config(corpus), config, schedule, progress=False) is not None


def test_another_jax_is_told_when_a_run_is_resumed(corpus, tmp_path, monkeypatch, caplog):
    schedule = dataclasses.replace(SCHEDULE, steps=10, eval_every=5)
    train(corpus, tmp_path, model_config(corpus), TRAIN, schedule, progress=False)
    monkeypatch.setattr(loop.jax, "__version__", "0.99")
    longer = dataclasses.replace(schedule, steps=15)
    train(corpus, tmp_path, model_config(corpus), TRAIN, longer, progress=False)
    assert "its bits may differ" in caplog.text


def test_messages_go_through_logging_and_nothing_is_printed(corpus, tmp_path, capsys, caplog):
    schedule = dataclasses.replace(SCHEDULE, steps=1)
    with caplog.at_level(logging.INFO, "jaxlm"):
        for _ in range(2):
            train(corpus, tmp_path, model_config(corpus), TRAIN, schedule, progress=False)
    assert "step 1: validation perplexity" in caplog.text and "already has its 1 steps" in caplog.text
    assert capsys.readouterr() == ("", "")
    assert [row["step"] for row in read_metrics(tmp_path) if "train_loss" in row] == [1]  # of its only step


@pytest.mark.slow
def test_averaging_begins_when_validation_no_longer_improves_and_the_run_resumes(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO, "jaxlm")
    changes = {"optimizer": "sgd", "compute_dtype": "float32", "average_patience": 2, "random_offsets": True}
    config = dataclasses.replace(TRAIN, **changes)
    schedule = dataclasses.replace(SCHEDULE, learning_rate=10.0, eval_every=2, eval_tokens=0, decay_fraction=0.0)
    for name, lengths in (("whole", [20]), ("resumed", [6, 16, 20])):
        for steps in lengths:
            length = dataclasses.replace(schedule, steps=steps)
            evaluation = train(corpus, tmp_path / name, model_config(corpus), config, length, progress=False)
    jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path / "resumed"), final_arrays(tmp_path / "whole"))
    earlier, rows = [], (row for row in read_metrics(tmp_path / "whole") if "valid_loss" in row)
    for row in rows:
        if len(earlier) > 2 and row["valid_loss"] > min(earlier[:-2]):  # as in the authors' main.py
            break
        earlier.append(row["valid_loss"])
    assert 6 < row["step"] < 20 and caplog.text.count(f"step {row['step']}: above the lowest loss") == 2
    assert caplog.text.count("averaging begins") == 2  # once in each run
    checkpoints = Checkpoints(tmp_path / "whole")
    averages = restore_model(checkpoints, 20, model_config(corpus), train=config)
    np.testing.assert_allclose(evaluate(averages, corpus.valid).loss, evaluation.loss, rtol=1e-6)
    last = restore_model(checkpoints, 20, model_config(corpus))
    assert abs(evaluate(last, corpus.valid).loss - evaluation.loss) > 1e-4
