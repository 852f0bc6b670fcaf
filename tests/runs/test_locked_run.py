"""A run continues only with the settings, vocabulary and texts that it began with, and in one process."""

import dataclasses
import os

import pytest

from jaxlm.config import LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import Corpus
from jaxlm.errors import InputError
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config, save_config
from jaxlm.runs.locked_run import lock
from jaxlm.runs.loop import resume, train

TRAIN = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20)
SCHEDULE = ScheduleConfig(steps=10, eval_every=60, eval_tokens=40, decay_fraction=0.3)


def model_config(corpus: Corpus) -> ModelConfig:
    return ModelConfig(len(corpus.vocabulary), embedding_size=6, hidden_size=8, dropout=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lstms": (LSTMConfig(11), LSTMConfig(9))}, "`hidden_size`=11, not `hidden_size`=9"),
        ({"optimizer": "sgd"}, "`optimizer`='adam', not `optimizer`='sgd'"),
        ({"use_word_vectors": False}, "`use_word_vectors`=True, not `use_word_vectors`=False"),
    ],
)
def test_a_run_with_other_settings_is_refused(run_dir, corpus, change, message):
    config = load_config(run_dir)
    before = (run_dir / "config.json").read_bytes()
    settings = [
        dataclasses.replace(part, **{name: value for name, value in change.items() if hasattr(part, name)})
        for part in (config.model, config.train, config.schedule)
    ]
    with pytest.raises(InputError, match=message):
        train(corpus, run_dir, *settings, use_word_vectors=change.get("use_word_vectors", True), progress=False)
    assert (run_dir / "config.json").read_bytes() == before


def test_another_directory_or_vocabulary_is_refused(run_dir, corpus, tmp_path):
    model, config, schedule = load_config(run_dir)[:3]
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and not a run"):
        train(corpus, tmp_path, model, config, schedule, progress=False)
    words = corpus.vocabulary.words
    other = dataclasses.replace(corpus.vocabulary, words=(*words[:-1], "other"))
    with pytest.raises(InputError, match="another vocabulary"):
        train(corpus._replace(vocabulary=other), run_dir, model, config, schedule, progress=False)


def test_a_run_that_another_process_trains_is_left_alone(corpus, tmp_path):
    train(corpus, tmp_path, model_config(corpus), TRAIN, SCHEDULE, progress=False)
    before = (tmp_path / "config.json").read_bytes()
    with lock(tmp_path), pytest.raises(InputError, match="Another process is training"):
        longer = dataclasses.replace(SCHEDULE, steps=20)
        train(corpus, tmp_path, model_config(corpus), TRAIN, longer, progress=False)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_finished_run_continues_only_if_made_longer(corpus, corpus_dir, tmp_path):
    results = []
    for data in ("", os.path.relpath(corpus_dir)):  # by default, where `load_corpus` opened it
        settings = model_config(corpus), TRAIN, SCHEDULE
        results.append(train(corpus, str(tmp_path), *settings, data=data, progress=False))
        assert load_config(tmp_path).data == str(corpus_dir)
    assert results[0] == results[1] and load_config(tmp_path).total_steps == 10
    before = (tmp_path / "config.json").read_bytes()
    for length, message in (
        ({"steps": 5}, "already has 10 steps, and the new length is 5"),
        ({"minutes": 1e-6}, r"already has 0\.\d+ minutes, and the new length is 1e-06"),
        ({"steps": 0}, "`steps`: expected a length above 0"),
    ):
        with pytest.raises(InputError, match=message):
            resume(tmp_path, progress=False, **length)
    assert (tmp_path / "config.json").read_bytes() == before
    longer = dataclasses.replace(SCHEDULE, steps=15)
    train(corpus, tmp_path, model_config(corpus), TRAIN, longer, progress=False)
    assert Checkpoints(tmp_path).latest_step() == 15
    by_epochs = ScheduleConfig(epochs=1.0, epoch_decay=1.2)
    save_config(tmp_path, load_config(tmp_path)._replace(schedule=by_epochs))
    with pytest.raises(InputError, match="Invalid `steps`: expected a length in `epochs`"):
        resume(tmp_path, progress=False, steps=20)
