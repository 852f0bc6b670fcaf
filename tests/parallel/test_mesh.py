"""States and steps on eight devices, however they are arranged, are those of one device."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import quick_if
from jax.sharding import PartitionSpec
from mesh_helpers import BATCH_SIZE, MODEL, TRAIN, VOCAB_SIZE, make_batch, make_model

from jaxlm.config import LSTMConfig, ModelConfig, TrainConfig
from jaxlm.data.batches import local_streams, train_batch
from jaxlm.device_config import MeshConfig
from jaxlm.errors import InputError
from jaxlm.losses.word_statistics import local_word_statistics, word_statistics
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel import mesh as meshes
from jaxlm.parallel.collectives import as_varying, on_mesh
from jaxlm.parallel.mesh import make_mesh, open_mesh, vocab_axes
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

LSTMS = (LSTMConfig(7, use_bias=False), LSTMConfig(6))
TIED = {"projection_size": 5, "tied": True}
MESHES = [(2, 4), (1, 8), (4, 2), (8, 1), (1, 1)]
REGULARIZERS = {
    "variational_dropout": True,
    "embedding_dropout": 0.3,
    "weight_dropout": 0.5,
    "activation_regularization": 2.0,
    "temporal_activation_regularization": 1.0,
}
CASES = [
    {"optimizer": "sgd"},
    {"optimizer": "adam", "clip_norm": 0.0},
    {"optimizer": "adagrad", "loss": "full", **REGULARIZERS},
    {"optimizer": "sgd", "loss": "nce", "model": TIED, **REGULARIZERS},
    {"optimizer": "adagrad", "loss": "full", "model": TIED, "clip_each": True},
    {"optimizer": "sgd", "compute_dtype": "bfloat16", "model": {"projection_size": 3}},
    {"optimizer": "adam", "sampler": "unigram", "clip_each": True, "labels": True, "model": {"lstms": LSTMS}},
    {"optimizer": "sgd", "sampler": "uniform", "clip_norm": 0.0, "train_embedding": False},
]
QUICK = [(2, (1, 8)), (3, (8, 1)), (6, (2, 4))]


@pytest.fixture(autouse=True)
def visible_devices():
    """All eight."""


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
    model = dataclasses.replace(MODEL, dropout_rates=(), dropout=0.3, **change.pop("model", {}))
    batch = make_batch(change.pop("labels", False))
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
            if name.startswith("dense/"):
                # rounding a gradient g by d moves the weight by rate * eps * d / (g + eps)^2
                gradient = 10 * np.abs(expected[name.replace("dense/", "opt_state/dense/0/mu/")])  # 1 - beta_1 is 0.1
                limit = 1e-5 + 0.1 * 1e-8 * 1e-6 * gradient.max() / (gradient + 1e-8) ** 2
                assert np.all(np.abs(ours[name] - correct) <= limit), name
                assert np.mean(limit < 2e-5) > 0.9, name
                continue
            np.testing.assert_allclose(ours[name], correct, err_msg=name, **tolerance)
        else:
            moved, should = np.asarray(ours[name] - before[name]), np.asarray(correct - before[name])
            # a bit of a weight is more than a bit of its increment
            bit = np.spacing(np.abs(correct).max().astype(np.float32)) if correct.dtype == np.float32 else 0
            np.testing.assert_allclose(moved, should, rtol=1e-5, atol=1e-5 * np.abs(should).max() + bit, err_msg=name)


@pytest.mark.parametrize("vocab_size", [1, 2_051])  # of one block of rows, and of several that overlap
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
    batch, config = make_batch(), dataclasses.replace(TRAIN, optimizer="sgd", loss=loss)
    for word in (VOCAB_SIZE, -1):  # the first one is padding
        state = TrainState.create(make_model(MODEL), config, mesh=make_mesh(1, 8))
        before = without_padding(state)
        placed = batch._replace(inputs=jnp.asarray(batch.inputs).at[5, 1].set(word))
        state, result = train_step(state, placed, 0.1)
        assert np.isnan(result) and state.skipped.tolist() == [1, 1]
        after = without_padding(state) | {"step": before["step"], "skipped": before["skipped"]}
        jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_new_state_is_that_of_one_device_in_shards(corpus):
    vocab_size = len(corpus.vocabulary)
    model, mesh = ModelConfig(vocab_size, embedding_size=6, hidden_size=8), make_mesh(1, 7)
    num_rows = -(-vocab_size // 7)
    assert 7 * num_rows > vocab_size  # so that there is padding
    for counted in (True, False):
        settings = model, dataclasses.replace(TRAIN, sampler="unigram")
        state, alone = (
            TrainState.from_corpus(corpus, *settings, use_word_vectors=counted, mesh=where) for where in (mesh, None)
        )
        for name, table in state.tables.items():
            assert {shard.data.shape[0] for shard in table.addressable_shards} == {num_rows}, name
            np.testing.assert_allclose(np.asarray(table)[:vocab_size], alone.tables[name], rtol=1e-5, atol=1e-6)
        assert jnp.abs(state.tables["embedding"]).max() > 0.5
        moments = jax.tree.leaves(state.opt_state["embedding"])
        assert {leaf.addressable_shards[0].data.shape for leaf in moments if leaf.ndim} == {(num_rows, 6)}
    abstract = jax.eval_shape(  # as `jaxlm.train` does before a run
        lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0), mesh=mesh), settings[1], corpus.counts)
    )
    assert [leaf.shape for leaf in jax.tree.leaves(abstract)] == [leaf.shape for leaf in jax.tree.leaves(state)]


def test_a_process_reads_its_own_streams_alone():
    tokens = np.arange(1, 1000, dtype=np.int32)
    config = TrainConfig(batch_size=6, sequence_length=5, random_offsets=True)
    whole, part = train_batch(tokens, 40, config), train_batch(tokens, 40, config, np.array([4, 1]))
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


def test_word_statistics_are_those_of_one_device_though_some_shards_are_padding_alone():
    keys = jax.random.split(jax.random.key(3), 3)
    inputs, weights, biases = (jax.random.normal(k, shape) for k, shape in zip(keys, ((6, 7), (5, 7), 5), strict=True))
    labels, mesh = jnp.arange(6) % 5, make_mesh(vocab=8)
    rows = PartitionSpec(vocab_axes(mesh))

    def statistics(weights, biases):
        varying = as_varying(inputs, vocab_axes(mesh))
        return local_word_statistics(varying, weights, labels, biases, 5, vocab_axes(mesh))

    padded = jnp.pad(weights, ((0, 11), (0, 0))), jnp.pad(biases, (0, 11))
    found = on_mesh(statistics, mesh, (rows, rows), PartitionSpec())(*padded)
    expected = word_statistics(inputs, weights, labels, biases=biases)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
