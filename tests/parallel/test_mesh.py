"""On eight devices, however they are arranged, the same as on one; what they send each other, and what each holds."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from collectives import collectives
from flax import nnx
from helpers import final_arrays, quick_if
from jax.sharding import NamedSharding

import convert.cli
import jaxlm.cli
from convert.files import run_directory
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.batches import Batch, local_streams, shard_batch, train_batch
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.device_config import MeshConfig
from jaxlm.errors import InputError
from jaxlm.inference.generation import generate
from jaxlm.inference.neighbors import nearest_words
from jaxlm.inference.perplexity import evaluate
from jaxlm.inference.scoring import score
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel import mesh as meshes
from jaxlm.parallel.mesh import make_mesh, open_mesh, padded_streams, stream_spec
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import RunConfig, load_model
from jaxlm.runs.loop import resume, train
from jaxlm.runs.progress import Progress
from jaxlm.runs.recorder import RunLogger
from jaxlm.runs.start import mesh_of_run
from jaxlm.training.evaluation import exact_and_training_loss
from jaxlm.training.state import TrainState, state_specs
from jaxlm.training.step import jit_train_step, train_step

VOCAB_SIZE, BATCH_SIZE = 53, 6  # neither of them divides by any number of devices
MODEL = ModelConfig(VOCAB_SIZE, embedding_size=5, hidden_size=7, num_layers=2, dropout=0.3)
TIED = {"projection_size": 5, "tied": True}
TRAIN = TrainConfig(
    batch_size=BATCH_SIZE,
    sequence_length=4,
    num_sampled=13,
    clip_norm=0.05,
    initial_accumulator_value=1e-9,
    compute_dtype="float32",
)
MESHES = [(2, 4), (1, 8), (4, 2), (8, 1), (1, 1)]
CASES = [
    {"optimizer": "sgd"},
    {"optimizer": "adam", "clip_norm": 0.0},
    {"optimizer": "adagrad", "loss": "full"},
    {"optimizer": "sgd", "loss": "nce", "model": TIED},
    {"optimizer": "adagrad", "loss": "full", "model": TIED, "clip_each": True},
    {"optimizer": "sgd", "compute_dtype": "bfloat16", "model": {"projection_size": 3}},
    {"optimizer": "adam", "sampler": "unigram", "clip_each": True, "labels": True},
    {"optimizer": "sgd", "sampler": "uniform", "clip_norm": 0.0, "train_embedding": False},
]

QUICK = [(0, (1, 8)), (0, (8, 1)), (0, (1, 1)), *((case, (2, 4)) for case in (1, 2, 3, 5, 6))]


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


def make_model(config: ModelConfig) -> LanguageModel:
    """Makes a model with random biases too, so that nothing is hidden by a zero."""
    model = LanguageModel(config, rngs=nnx.Rngs(1))
    model.biases[...] = jax.random.normal(jax.random.key(2), model.biases.shape)
    return model


def make_batch(has_labels_somewhere: bool = False) -> Batch:
    rng = np.random.default_rng(4)
    words = rng.integers(0, 40, (BATCH_SIZE, 5)).astype(np.int32)
    batch = Batch(words[:, :-1], words[:, 1:])
    if not has_labels_somewhere:
        return batch
    positions = rng.permuted(np.tile(np.arange(4, dtype=np.int32), (BATCH_SIZE, 1)), axis=1)[:, :3]
    labels = np.take_along_axis(batch.labels, positions, axis=1)
    return Batch(batch.inputs, labels, False, positions, rng.random((BATCH_SIZE, 3), np.float32))


def without_padding(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the arrays of a state as they are on one device."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(dataclasses.replace(state, key=None))[0]:
        name = meshes.leaf_name(path)
        cut = meshes.sharded_dim(name, leaf.ndim)
        whole = np.array(leaf)  # a copy, since a step donates its state
        arrays[name] = whole[: VOCAB_SIZE if cut == "rows" else BATCH_SIZE] if cut else whole
    return arrays


@cache
def one_step(case: int, shape: tuple[int, int] | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Returns the state before and after a step, and the loss."""
    change = dict(CASES[case])
    model, batch = dataclasses.replace(MODEL, **change.pop("model", {})), make_batch(change.pop("labels", False))
    mesh = None if shape is None else make_mesh(*shape)
    config = dataclasses.replace(TRAIN, **change)
    state = TrainState.create(make_model(model), config, np.arange(1, VOCAB_SIZE + 1), mesh=mesh)
    before = without_padding(state)
    state, loss = train_step(state, batch, 0.1)
    return before, without_padding(state), float(loss)


@pytest.mark.parametrize(
    ("case", "shape"),
    quick_if(
        lambda case, shape: (case, shape) in QUICK,
        [(n, m) for n in range(8) for m in MESHES],
    ),
)
def test_one_step_equals_that_of_one_device(case, shape):
    before, expected, loss = one_step(case, None)
    start, ours, our_loss = one_step(case, shape)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-6)
    assert set(ours) == set(expected)
    for name, correct in expected.items():
        np.testing.assert_array_equal(start[name], before[name], err_msg=name)
        if CASES[case]["optimizer"] == "adam":  # whose first step is the learning rate however small the gradient is
            tolerance = {"rtol": 1e-5, "atol": 1e-6} if name.startswith("opt_state") else {"atol": 1e-5}
            np.testing.assert_allclose(ours[name], correct, err_msg=name, **tolerance)
        else:
            moved, should = np.asarray(ours[name] - before[name]), np.asarray(correct - before[name])
            # a bit of a weight is more than a bit of its increment
            bit = np.spacing(np.abs(correct).max().astype(np.float32)) if correct.dtype == np.float32 else 0
            np.testing.assert_allclose(moved, should, rtol=1e-5, atol=1e-5 * np.abs(should).max() + bit, err_msg=name)


@pytest.mark.parametrize("vocab_size", [1, 1_024, 2_051])  # of one block of rows, and of several that overlap
def test_random_rows_are_those_of_one_device(vocab_size):
    config = ModelConfig(vocab_size, embedding_size=3, hidden_size=5)
    one, many = (LanguageModel(config, rngs=nnx.Rngs(0), mesh=mesh) for mesh in (None, make_mesh(2, 4)))
    for rows, padded, limit in (
        (one.embedding[...], many.embedding[...], 1.0),
        (one.weights[...], many.weights[...], (6 / (vocab_size + 5)) ** 0.5),
    ):
        np.testing.assert_array_equal(padded[:vocab_size], rows)
        assert not padded[vocab_size:].any() and 0.5 * limit < jnp.abs(rows).max() <= limit
        assert len(np.unique(rows)) > 0.99 * rows.size


def test_twenty_steps_replicas_and_padding():
    results = []
    for mesh in (None, make_mesh(2, 4)):
        config = dataclasses.replace(TRAIN, optimizer="sgd")
        state = TrainState.create(make_model(MODEL), config, mesh=mesh)
        for _ in range(20):
            state, loss = train_step(state, make_batch(), 0.1)
        results.append(without_padding(state) | {"loss": loss})
    jax.tree.map(lambda one, many: np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5), *results)
    for name, table in state.tables.items():
        copies = {}
        for shard in table.addressable_shards:
            copies.setdefault(shard.index[0].start, []).append(np.asarray(shard.data))
        assert [len(copy) for copy in copies.values()] == [2] * 4, name
        for one, other in copies.values():
            np.testing.assert_array_equal(one, other)
        assert table.shape[0] == 56 and not np.asarray(table)[VOCAB_SIZE:].any(), name
    for replica in jax.tree.leaves(state.dense):
        for shard in replica.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, replica.addressable_shards[0].data)


@pytest.mark.parametrize("loss", ["sampled_softmax", pytest.param("full", marks=pytest.mark.exhaustive)])
def test_an_invalid_id_skips_the_step_everywhere(loss):
    batch, config = make_batch(), dataclasses.replace(TRAIN, loss=loss)
    for word in (VOCAB_SIZE, -1):  # the first one is padding
        state = TrainState.create(make_model(MODEL), config, mesh=make_mesh(1, 8))
        before = without_padding(state)
        placed = batch._replace(inputs=jnp.asarray(batch.inputs).at[5, 1].set(word))
        state, result = train_step(state, placed, 0.1)
        assert np.isnan(result) and state.skipped.tolist() == [1, 1]
        after = without_padding(state) | {"step": before["step"], "skipped": before["skipped"]}
        jax.tree.map(np.testing.assert_array_equal, after, before)


def test_exact_and_training_loss_and_evaluation_are_those_of_one_device():
    text, results = np.random.default_rng(5).integers(0, VOCAB_SIZE, 200), []
    for mesh in (None, make_mesh(2, 4), make_mesh(1, 8)):
        state = TrainState.create(make_model(MODEL), TRAIN, mesh=mesh)
        losses = exact_and_training_loss(state, shard_batch(make_batch(), mesh))
        results.append([*map(float, losses), evaluate(state.model, text, batch_size=5, sequence_length=7).loss])
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-6)


@pytest.mark.parametrize("options", [{"top_k": 7, "top_p": 0.8}, {"temperature": 0.0}])
def test_generation_draws_the_words_of_one_device(options):
    texts = []
    vocabulary = Vocabulary((*map(str, range(VOCAB_SIZE - 1)), "<unk>"), None, "whitespace")
    for mesh in (None, make_mesh(1, 8)):
        state = TrainState.create(make_model(MODEL), TRAIN, mesh=mesh)
        texts.append(generate(state.model, vocabulary, "3 1 4", 20, key=jax.random.key(0), **options))
    assert texts[0] == texts[1] and len(texts[0].split()) == 23


def compiled_step(shape: tuple[int, int] | None, vocab_size: int, **change):
    """Compiles a step of the model in the README, without its arrays."""
    mesh = None if shape is None else make_mesh(*shape)
    config = TrainConfig(**{"compute_dtype": "float32"} | change)
    model = ModelConfig(vocab_size)
    state = jax.eval_shape(lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0), mesh=mesh), config))
    sizes = padded_streams(config.batch_size, mesh), config.sequence_length
    if mesh is None:
        ids = jax.ShapeDtypeStruct(sizes, jnp.int32)
    else:
        ids = jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=NamedSharding(mesh, stream_spec(mesh)))
        state = jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
            state,
            state_specs(state),
        )
    return jit_train_step.lower(state, Batch(ids, ids, False), np.float32(0.1)).compile()


@pytest.mark.parametrize(
    ("shape", "count", "megabytes"),
    quick_if(lambda shape, *_: shape == (2, 4), [((2, 4), 21, 52), ((1, 8), 15, 55), ((8, 1), 6, 50)]),
)
def test_no_table_travels_and_no_device_holds_more_than_its_share(shape, count, megabytes):
    vocab_size = 200_000
    program, alone = compiled_step(shape, vocab_size), compiled_step(None, vocab_size)
    found = collectives(program.as_text())
    assert 0 < len(found) <= count
    assert sum(collective.wire for collective in found) < megabytes * 1e6  # 37 of them are the LSTM's gradient
    shard = vocab_size // shape[1] * 256 * 4  # of the smaller table
    lstm = 1024 * 4096 * 4
    for collective in found:
        assert all(size == lstm or size < shard / 4 for size in collective.sizes), collective
    memory, before = program.memory_analysis(), alone.memory_analysis()
    assert memory.temp_size_in_bytes < before.temp_size_in_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # all of the state is in place
    dense = 4 * 3 * (1024 + 256 + 1) * 4096  # the LSTM, its moments
    share = (before.argument_size_in_bytes - dense) / shape[1] + dense
    assert memory.argument_size_in_bytes < 1.01 * share


def test_a_step_whose_tables_no_device_can_hold_fits_eight():
    """What a device needs is counted, not allocated: 4.8 GB alone, 0.7 GB as one of eight."""
    limit = 800e6  # bytes of a device
    needs = [
        program.memory_analysis().argument_size_in_bytes + program.memory_analysis().temp_size_in_bytes
        for program in (compiled_step(None, 300_000), compiled_step((1, 8), 300_000))
    ]
    assert needs[1] < limit < needs[0]


def test_a_new_state_is_that_of_one_device_in_shards(corpus):
    vocab_size = len(corpus.vocabulary)
    model, mesh = ModelConfig(vocab_size, embedding_size=6, hidden_size=8), make_mesh(1, 7)
    num_rows = -(-vocab_size // 7)
    assert 7 * num_rows > vocab_size  # so that there is padding
    for counted in (True, False):
        config = dataclasses.replace(TRAIN, word_vectors=counted, sampler="unigram")
        state, alone = (TrainState.from_corpus(corpus, model, config, mesh=where) for where in (mesh, None))
        for name, table in state.tables.items():
            assert {shard.data.shape[0] for shard in table.addressable_shards} == {num_rows}, name
            if counted or name == "biases":
                np.testing.assert_allclose(np.asarray(table)[:vocab_size], alone.tables[name], rtol=1e-5, atol=1e-6)
        assert jnp.abs(state.tables["embedding"]).max() > 0.5
        moments = jax.tree.leaves(state.opt_state["embedding"])
        assert {leaf.addressable_shards[0].data.shape for leaf in moments if leaf.ndim} == {(num_rows, 6)}


def test_a_run_may_move_between_meshes(corpus, corpus_dir, tmp_path, caplog):
    model = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11, dropout=0.2)
    config = TrainConfig(batch_size=6, sequence_length=5, num_sampled=21, compute_dtype="float32", optimizer="adagrad")
    schedule = ScheduleConfig(0.03, steps=10, eval_every=10, eval_tokens=400, decay_fraction=0.0)
    losses = []
    for name, places in (("one", [None, None]), ("many", [make_mesh(1, 8), make_mesh(3, 2)])):
        run = tmp_path / name
        train(corpus, run, model, config, schedule, data=corpus_dir, progress=False, mesh=places[0])
        assert mesh_of_run(run) == (MeshConfig() if places[0] is None else MeshConfig(8, 1))
        losses.append(resume(run, steps=20, mesh=places[1], progress=False).loss)
    for one, many in zip(*(final_arrays(tmp_path / name) for name in ("one", "many")), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    assert "was saved by 1 process(es) on 1 x 8 devices" in caplog.text
    progress = [Checkpoints(run).progress(step) for step in (10, 20)]
    assert [each.mesh for each in progress] == [(1, 8), (3, 2)] and progress[0].device == "cpu"
    whole, sharded = load_model(run)[0], load_model(run, mesh=make_mesh(2, 4))[0]
    assert whole.weights.shape[0] == len(corpus.vocabulary)
    found = [evaluate(each, corpus.valid, max_tokens=400).loss for each in (whole, sharded)]
    np.testing.assert_allclose(found, losses[1], rtol=1e-6)


def test_a_process_reads_its_own_streams_alone():
    tokens = np.arange(1, 1000, dtype=np.int32)
    whole, part = train_batch(tokens, 3, 6, 5), train_batch(tokens, 3, 6, 5, np.array([4, 1]))
    np.testing.assert_array_equal(part.inputs[[1, 4]], whole.inputs[[1, 4]])
    assert not part.inputs[[0, 2, 3, 5]].any()
    np.testing.assert_array_equal(local_streams(6, make_mesh(2, 4)), np.arange(6))  # one process has all devices


@pytest.mark.parametrize(
    ("shape", "argument"),
    [((0, 8), "data"), ((9, None), "data"), ((3, 3), "vocab"), ((1, 9), "vocab"), ((1, 0), "vocab")],
)
def test_meshes_that_do_not_fit_the_devices_raise(shape, argument):
    with pytest.raises(InputError, match=f"Invalid `{argument}`: expected 1 to 8"):
        make_mesh(*shape)
    if 0 not in shape:
        data, vocab = shape
        with pytest.raises(InputError, match=f"Invalid `{argument}_shards`: expected 1 to 8"):
            open_mesh(MeshConfig(vocab or 0, data))


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
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:3])
    assert mesh_of_run(run) == MeshConfig()
    monkeypatch.undo()
    assert jaxlm.cli.run(["evaluate", str(run), "--max-tokens=50"]) == 0


def test_the_length_that_the_clock_gives_is_given_once(corpus, corpus_dir, tmp_path):
    config = RunConfig(ModelConfig(len(corpus.vocabulary)), TRAIN, ScheduleConfig(minutes=1.0), str(corpus_dir))
    run = RunLogger(tmp_path, config, Checkpoints(tmp_path), corpus, 0, Progress(0.0), False)
    assert [run.estimate_length(step, seconds) for step, seconds in ((3, 3.0), (4, 20.0))] == [0, 0]
    first = run.estimate_length(40, 40.0)
    assert first == run.estimate_length(41, 55.0) > 0  # several processes learn of it a step later


def test_the_nearest_words_are_those_of_one_device():
    models = [TrainState.create(make_model(MODEL), TRAIN, mesh=mesh).model for mesh in (None, make_mesh(1, 8))]
    one, many = (nearest_words(model, [3, 52], k=50, table="softmax") for model in models)
    np.testing.assert_array_equal(many.ids, one.ids)
    with pytest.raises(InputError, match="a model on a single device"):
        next(score(models[1], Vocabulary(tuple(map(str, range(VOCAB_SIZE))), None, "whitespace"), ["3 1"]))


def test_keras_gets_the_weights_without_the_padding(corpus, tmp_path):
    config = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11)
    schedule = ScheduleConfig(steps=4, eval_every=4, eval_tokens=100)
    train(corpus, tmp_path / "run", config, TRAIN, schedule, progress=False, mesh=make_mesh(1, 7))  # 119 = 7 * 17 + 1
    live = convert.to_keras(load_model(tmp_path / "run", mesh=make_mesh(1, 7))[0])
    assert convert.cli.run(["to-keras", str(tmp_path / "run"), str(tmp_path / "model.keras")]) == 0
    stored = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(live.get_weights(), stored.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("stateful", [False, True])
def test_fit_keras_trains_on_a_mesh_as_on_one_device(stateful):
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (24, 10))
    results = []
    for mesh in (None, make_mesh(2, 4)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(batch_shape=(6, 9))
        embedded = keras.layers.Embedding(VOCAB_SIZE, 5)(inputs)
        hidden = keras.layers.LSTM(7, return_sequences=True, stateful=stateful)(embedded)
        model = keras.Model(inputs, keras.layers.Dense(VOCAB_SIZE, activation="softmax")(hidden))
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
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
        results.append([*history.history["loss"], *history.history["val_loss"], model.get_weights(), states])
    jax.tree.map(lambda one, many: np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5), *results)
