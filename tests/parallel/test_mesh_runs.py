"""Runs on eight devices: trained, moved between meshes, evaluated, used, and given to Keras."""

import dataclasses
from unittest.mock import Mock

import jax
import keras
import numpy as np
import pytest
from helpers import final_arrays
from mesh_helpers import MODEL, TRAIN, VOCAB_SIZE, make_batch, make_model

import convert.cli
import jaxlm.cli
from convert.files import run_directory
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.batches import shard_batch
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.device_config import MeshConfig
from jaxlm.errors import InputError
from jaxlm.inference.generation import generate
from jaxlm.inference.neighbors import nearest_words
from jaxlm.inference.perplexity import evaluate
from jaxlm.inference.scoring import score
from jaxlm.parallel.mesh import make_mesh
from jaxlm.runs import averaging
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.compilation import Compilation
from jaxlm.runs.directory import RunConfig, load_model
from jaxlm.runs.initial_state import mesh_of_run
from jaxlm.runs.loop import resume, train
from jaxlm.runs.progress import Progress
from jaxlm.runs.run_logger import RunLogger
from jaxlm.training.batch_losses import exact_and_training_loss
from jaxlm.training.state import TrainState


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


def test_exact_and_training_loss_and_evaluation_are_those_of_one_device():
    text, results = np.random.default_rng(5).integers(0, VOCAB_SIZE, 200), []
    for mesh in (None, make_mesh(2, 4), make_mesh(1, 8)):
        state = TrainState.create(make_model(MODEL), TRAIN, mesh=mesh)
        losses = exact_and_training_loss(state, shard_batch(make_batch(), mesh))
        results.append([*map(float, losses), evaluate(state.model, text, batch_size=5, sequence_length=7).loss])
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"top_k": 7, "top_p": 0.8}, pytest.param({"temperature": 0.0}, marks=pytest.mark.exhaustive)]
)
def test_generation_draws_the_words_of_one_device(options):
    texts = []
    vocabulary = Vocabulary((*map(str, range(VOCAB_SIZE - 1)), "<unk>"), None, "whitespace")
    for mesh in (None, make_mesh(1, 8)):
        state = TrainState.create(make_model(MODEL), TRAIN, mesh=mesh)
        texts.append(generate(state.model, vocabulary, "3 1 4", 20, key=jax.random.key(0), **options))
    assert texts[0] == texts[1] and len(texts[0].split()) == 23


def test_a_run_may_move_between_meshes_and_to_keras(corpus, corpus_dir, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(averaging, "no_longer_improves", lambda losses, patience: True)  # from step 5 on
    model = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11, dropout=0.2)
    sizes = {"batch_size": 6, "sequence_length": 5, "num_sampled": 21, "sampler": "unigram"}
    config = TrainConfig(**sizes, compute_dtype="float32", optimizer="adagrad", average_patience=1)
    schedule = ScheduleConfig(0.03, steps=10, eval_every=5, eval_tokens=400, decay_fraction=0.0)
    losses = []
    for name, places in (("one", [None, None]), ("many", [make_mesh(2, 4), make_mesh(1, 7)])):
        run = tmp_path / name
        train(corpus, run, model, config, schedule, data=corpus_dir, progress=False, mesh=places[0])
        assert mesh_of_run(run) == (MeshConfig() if places[0] is None else MeshConfig(4, 2))
        losses.append(resume(run, steps=20, eval_every=10, mesh=places[1], progress=False).loss)
    for one, many in zip(*(final_arrays(tmp_path / name) for name in ("one", "many")), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    assert "was saved by 1 process(es) on 2 x 4 devices" in caplog.text
    progress = [Checkpoints(run).progress(step) for step in (10, 20)]
    assert [each.mesh for each in progress] == [(2, 4), (1, 7)] and progress[0].device == "cpu"
    whole, sharded = (load_model(run, mesh=mesh).model for mesh in (None, make_mesh(1, 7)))  # 120 words: 7 * 17 + 1
    assert whole.weights.shape[0] == len(corpus.vocabulary)
    found = [evaluate(each, corpus.valid, max_tokens=400).loss for each in (whole, sharded)]
    np.testing.assert_allclose(found, losses[1], rtol=1e-6)
    live = convert.to_keras(sharded)  # without the padding of its shards
    assert convert.cli.run(["to-keras", str(run), str(tmp_path / "model.keras")]) == 0
    stored = keras.models.load_model(tmp_path / "model.keras")
    jax.tree.map(np.testing.assert_array_equal, live.get_weights(), stored.get_weights())


@pytest.mark.exhaustive
def test_an_imported_run_trains_on_a_mesh(corpus, tmp_path):
    config = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11)
    losses = []
    for name, mesh in (("one", None), ("many", make_mesh(2, 4))):
        run_directory.write(tmp_path / name, make_model(config), corpus.vocabulary)
        train_config = dataclasses.replace(TRAIN, optimizer="sgd")
        schedule = ScheduleConfig(steps=4, eval_every=4, eval_tokens=100)
        losses.append(train(corpus, tmp_path / name, config, train_config, schedule, progress=False, mesh=mesh).loss)
        with pytest.raises(InputError, match="`mesh`: expected that of the model"):
            TrainState.create(load_model(tmp_path / name, mesh=make_mesh(1, 8))[0], TRAIN, mesh=make_mesh(1, 4))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.exhaustive
def test_a_run_keeps_its_mesh_if_there_are_as_many_devices(corpus_dir, tmp_path, monkeypatch):
    run = tmp_path / "run"
    flags = ["--embedding-size=7", "--hidden-size=11", "--batch-size=6", "--sequence-length=5", "--eval-tokens=100"]
    train_run = ["train", str(corpus_dir), f"--out={run}", *flags, "--num-sampled=20"]
    assert jaxlm.cli.run([*train_run, "--steps=2", "--data-shards=2"]) == 0
    assert jaxlm.cli.run(["resume", str(run), "--steps=4"]) == 0
    assert Checkpoints(run).progress(4).mesh == (2, 4) and mesh_of_run(run) == MeshConfig(4, 2)
    assert jaxlm.cli.run(["resume", str(run), "--steps=5", "--vocab-shards=0", "--data-shards=1"]) == 0
    assert Checkpoints(run).progress(5).mesh == (1, 8)  # the defaults, if they are given
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:3])
    assert mesh_of_run(run) == MeshConfig()
    monkeypatch.undo()
    assert jaxlm.cli.run(["evaluate", str(run), "--max-tokens=50"]) == 0


def test_the_length_that_the_clock_gives_is_given_once(corpus, corpus_dir, tmp_path):
    config = RunConfig(ModelConfig(len(corpus.vocabulary)), TRAIN, ScheduleConfig(minutes=1.0), str(corpus_dir))
    checkpoints, compilation = Checkpoints(tmp_path), Mock(spec=Compilation)
    run = RunLogger(tmp_path, config, checkpoints, compilation, corpus, 0, Progress(0.0), False)
    assert [run.estimate_length(step, seconds) for step, seconds in ((3, 3.0), (4, 20.0))] == [0, 0]
    first = run.estimate_length(40, 40.0)
    assert first == run.estimate_length(41, 55.0) > 0  # several processes learn of it a step later


def test_the_nearest_words_are_those_of_one_device():
    models = [TrainState.create(make_model(MODEL), TRAIN, mesh=mesh).model for mesh in (None, make_mesh(1, 8))]
    vocabulary = Vocabulary(tuple(map(str, range(VOCAB_SIZE))), None, "whitespace")
    one, many = (nearest_words(model, vocabulary, "52", k=50, table="softmax").words for model in models)
    assert many == one
    with pytest.raises(InputError, match="a model on a single device"):
        next(score(models[1], vocabulary, ["3 1"]))


@pytest.mark.parametrize("stateful", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_fit_keras_trains_on_a_mesh_as_on_one_device(stateful):
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (24, 10))
    results = []
    for mesh in (None, make_mesh(2, 4)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(batch_shape=(6, 9))
        embedded = keras.layers.Embedding(VOCAB_SIZE, 5)(inputs)
        hidden = keras.layers.LSTM(7, return_sequences=True, stateful=stateful)(embedded)
        model = keras.Model(inputs, keras.layers.Dense(VOCAB_SIZE, activation="softmax")(hidden))
        metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(9), "sparse_categorical_crossentropy"]
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=metrics)
        data, options = (ids[:12, :-1], ids[:12, 1:]), {"batch_size": 6, "num_sampled": 13, "verbose": 0}
        for _ in range(2):  # Adam's moments go in and out
            history = convert.fit_keras(
                model,
                *data,
                epochs=2,
                validation_data=(ids[12:, :-1], ids[12:, 1:]),
                compute_dtype="float32",
                mesh=mesh,
                **options,
            )
        states = [np.asarray(variable) for variable in model.layers[2].variables[3:]]
        assert int(model.optimizer.iterations.numpy()) == 8
        assert len(history.history) == 5  # two losses and three metrics
        results.append([history.history, model.get_weights(), states])
    jax.tree.map(lambda one, many: np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5), *results)
    model.compile(keras.optimizers.Adam(gradient_accumulation_steps=2), "sparse_categorical_crossentropy")
    with pytest.raises(InputError, match="`mesh`: expected None with gradient_accumulation_steps"):
        convert.fit_keras(model, *data, mesh=mesh, **options)
