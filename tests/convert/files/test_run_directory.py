"""Damaged files of an imported run."""

import dataclasses

import numpy as np
import pytest

import jaxlm
from convert import frequency_order
from convert.files import run_directory
from convert.keras_models.in_memory import to_keras
from convert.weights.id_order import KerasIds
from convert.weights.optimizer_state import OptimizerState
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.runs.directory import load_config, save_config


def test_counts_are_sorted_stably():
    assert frequency_order([9, 9, 3, 0]) is None
    assert frequency_order([3, 9, 3, 9]).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_damaged_keras_ids_are_refused(random_model, tmp_path, ids):
    vocabulary = Vocabulary(("<unk>", "<eos>", "the"), (3, 2, 1), "words")
    run = tmp_path / "run"
    run_directory.write(run, random_model(1, vocab_size=3), vocabulary, KerasIds(np.array([2, 0, 1])))
    assert run_directory.load(run).words == ("<eos>", "the", "<unk>")
    KerasIds(np.array(ids)).save(run)
    with pytest.raises(InputError, match="keras_ids.npy is damaged"):
        run_directory.load(run)


def test_the_state_of_sgd_is_its_settings_which_keras_has_too(random_model, tmp_path):
    vocabulary = Vocabulary(("<unk>", "<eos>", "the"), (3, 2, 1), "words")
    state = OptimizerState("sgd", 0, 0.5, 2.0, jaxlm.TrainConfig.beta_2, {})
    run = tmp_path / "run"
    run_directory.write(run, random_model(1, vocab_size=3), vocabulary, optimizer=state)
    assert run_directory.load(run, keep_optimizer=True).optimizer == state
    config = load_config(run)
    for name, value in (("weight_decay", 0.1), ("clip_each", True)):
        save_config(run, config._replace(train=dataclasses.replace(config.train, **{name: value})))
        assert run_directory.load(run).optimizer is None
        with pytest.raises(InputError, match=f"trained with `{name}`.*leave out `keep_optimizer`"):
            run_directory.load(run, keep_optimizer=True)


@pytest.mark.slow
def test_a_run_with_every_regularizer_is_exported_as_the_plain_model_of_its_averages(corpus, tmp_path):
    config = jaxlm.TrainConfig(
        batch_size=4,
        sequence_length=5,
        num_sampled=20,
        optimizer="sgd",
        variational_dropout=True,
        embedding_dropout=0.1,
        weight_dropout=0.5,
        weight_decay=1e-3,
        activation_regularization=2.0,
        temporal_activation_regularization=1.0,
        average_after=4,
    )
    model_config = jaxlm.ModelConfig(len(corpus.vocabulary), 7, 7, num_layers=2, tied=True, dropout=0.3)
    schedule = jaxlm.ScheduleConfig(learning_rate=1.0, steps=8, eval_every=8, eval_tokens=0)
    evaluation = jaxlm.train(corpus, tmp_path / "run", model_config, config, schedule, progress=False)
    exported = to_keras(run_directory.load(tmp_path / "run").model)
    ids = np.asarray(corpus.valid)
    probabilities = exported.predict(ids[None, :-1], verbose=0)[0]  # one stream from the zero state
    loss = -np.log(np.take_along_axis(probabilities, ids[1:, None], axis=-1), dtype=np.float64).mean()
    model = jaxlm.load_model(tmp_path / "run").model
    np.testing.assert_allclose(loss, jaxlm.evaluate(model, ids, batch_size=1).loss, rtol=1e-5)
    np.testing.assert_allclose(jaxlm.evaluate(model, ids).loss, evaluation.loss, rtol=1e-6)
    with pytest.raises(InputError, match="averaged weights.*leave out `keep_optimizer`"):
        run_directory.load(tmp_path / "run", keep_optimizer=True)
