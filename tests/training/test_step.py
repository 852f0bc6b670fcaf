"""A whole training step against plain autodiff through full tables and dense Optax; memory; determinism."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import BARE, CHAIN, branches_for, quick_if

from jaxlm.candidate_sampling.distributions import unigram_table
from jaxlm.candidate_sampling.samplers import (
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batch_blocks import BLOCK_STEPS, BatchBlock
from jaxlm.data.batches import Batch
from jaxlm.errors import InputError
from jaxlm.losses.sampled import nce_loss, sampled_softmax_loss
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import ACCELERATOR_UNROLL
from jaxlm.training.evaluation import exact_and_training_loss
from jaxlm.training.state import TrainState
from jaxlm.training.step import jit_train_step, step_in_block, train_step

MODEL = ModelConfig(50, embedding_size=5, hidden_size=7, num_layers=2)
CHAIN_SIZES = CHAIN | {"hidden_size": 6}  # replaces that of MODEL
TRAIN = TrainConfig(
    batch_size=3,
    sequence_length=4,
    num_sampled=12,
    clip_norm=0.0,
    initial_accumulator_value=1e-9,
    compute_dtype="float32",
)


UNIGRAMS = np.arange(1, 51)


def make_model(config: ModelConfig = MODEL) -> LanguageModel:
    """Makes a model whose biases are random too, so that nothing is hidden by a zero."""
    model = LanguageModel(config, rngs=nnx.Rngs(1))
    model.biases[...] = jax.random.normal(jax.random.key(2), model.biases.shape)
    for lstm in model.lstms:
        if lstm.bias is not None:
            lstm.bias[...] += jax.random.normal(jax.random.key(3), lstm.bias.shape)
    return model


def batches(count: int, config: TrainConfig = TRAIN) -> list[Batch]:
    shape = (count, config.batch_size, config.sequence_length + 1)
    words = np.random.default_rng(4).integers(0, 30, shape).astype(np.int32)  # ids from 30 on never occur
    return [Batch(rows[:, :-1], rows[:, 1:]) for rows in words]


def labels_somewhere(batch: Batch) -> Batch:
    """Returns a batch with labels at three time steps of each row, which count differently."""
    rng = np.random.default_rng(5)
    positions = rng.permuted(np.tile(np.arange(4, dtype=np.int32), (3, 1)), axis=1)[:, :3]
    labels = np.take_along_axis(batch.labels, positions, axis=1)
    return batch._replace(labels=labels, positions=positions, weights=rng.random((3, 3), np.float32))


def clip_by_norm(gradient: jax.Array, limit: float) -> jax.Array:
    return gradient * limit / jnp.maximum(limit, jnp.linalg.norm(gradient))


def in_embedding(tree: dict) -> dict:
    return {name: jax.tree.map(lambda _, name=name: name == "embedding", value) for name, value in tree.items()}


def dense_training(config: TrainConfig, model: LanguageModel, words: list[Batch]) -> dict:
    """Does what the steps should do: every table a dense parameter, Optax as a user would write it."""
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    rules = {
        "sgd": optax.sgd(0.1),
        "adagrad": optax.adagrad(0.1, config.initial_accumulator_value),
        "adam": optax.adam(0.1),
    }
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.clip_each:
        clip = [optax.stateless(lambda updates, _: jax.tree.map(lambda g: clip_by_norm(g, config.clip_norm), updates))]
    frozen = [] if config.train_embedding else [optax.masked(optax.set_to_zero(), lambda tree: in_embedding(tree))]
    transform = optax.chain(*frozen, *clip, rules[config.optimizer])
    opt_state, carry = transform.init(params), model.initial_carry(config.batch_size)
    for step, batch in enumerate(words):
        inputs, labels, positions = batch.inputs, batch.labels.reshape(-1, 1), batch.positions
        weights = (1 if batch.weights is None else batch.weights.reshape(-1)) / labels.size
        sampling_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))

        def loss(params, inputs=inputs, labels=labels, key=sampling_key, carry=carry, positions=positions, w=weights):
            model = nnx.merge(graphdef, params)
            hidden, new_carry = model.hidden(model.embed(inputs), carry)
            if positions is not None:
                hidden = jnp.stack([row[columns] for row, columns in zip(hidden, positions, strict=True)])
            hidden = hidden.reshape(-1, hidden.shape[-1])
            if config.loss == "full":
                logits = hidden @ model.weights[...].T + model.biases[...][None, :]
                return (w * optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, 0])).sum(), new_carry
            sampling = (key, labels, config.num_sampled, True, MODEL.vocab_size)
            if config.sampler == "unigram":
                values = fixed_unigram_candidate_sampler(*sampling, unigram_table(UNIGRAMS))
            elif config.sampler == "uniform":
                values = uniform_candidate_sampler(*sampling)
            else:
                values = log_uniform_candidate_sampler(*sampling)
            loss_of = nce_loss if config.loss == "nce" else sampled_softmax_loss
            losses = loss_of(model.weights[...], model.biases[...], labels, hidden, config.num_sampled, 50, 1, values)
            return (w * losses).sum(), new_carry

        gradients, carry = jax.jit(jax.grad(loss, has_aux=True))(params)
        updates, opt_state = transform.update(gradients, opt_state)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"optimizer": "adagrad"}, marks=pytest.mark.exhaustive),
        {"optimizer": "adagrad", "clip_norm": 0.02},
        {"optimizer": "adagrad", "loss": "full", "clip_norm": 0.02},
        {"optimizer": "adam", "loss": "full"},
        {"optimizer": "sgd", "sampler": "uniform", "clip_norm": 0.02},
        {"optimizer": "sgd", "sampler": "unigram", "model": {"projection_size": 3}},
        {"optimizer": "adagrad", "loss": "nce", "clip_norm": 0.02},
        {"optimizer": "adagrad", "model": {"projection_size": 5, "tied": True}, "clip_norm": 0.02},
        {"optimizer": "sgd", "model": {"embedding_size": 7, "tied": True}, "loss": "full"},
        {"optimizer": "sgd", "clip_norm": 0.02, "clip_each": True},
        pytest.param(
            {"optimizer": "adagrad", "clip_norm": 0.02, "clip_each": True, "loss": "full"}, marks=pytest.mark.exhaustive
        ),
        {"optimizer": "sgd", "clip_norm": 0.02, "train_embedding": False},
        {"optimizer": "adagrad", "labels": labels_somewhere},
        pytest.param({"optimizer": "sgd", "labels": labels_somewhere, "loss": "full"}, marks=pytest.mark.exhaustive),
        pytest.param({"optimizer": "sgd", "labels": labels_somewhere, "loss": "nce"}, marks=pytest.mark.exhaustive),
        {"optimizer": "adagrad", "model": CHAIN_SIZES},
    ],
)
def test_steps_equal_dense_optax(change):
    change = dict(change)
    model = dataclasses.replace(MODEL, **change.pop("model", {}))
    choose_labels = change.pop("labels", lambda batch: batch)
    config = dataclasses.replace(TRAIN, **change)
    optimizer = config.optimizer
    # lazy Adam equals the dense step if the same rows come every time
    words = [choose_labels(batch) for batch in (batches(1) * 2 if optimizer == "adam" else batches(2))]
    start = nnx.to_pure_dict(nnx.state(make_model(model), nnx.Param))
    expected = dense_training(config, make_model(model), words)
    state = TrainState.create(make_model(model), config, UNIGRAMS)
    for batch in words:
        state, _ = train_step(state, batch, 0.1)
    ours = nnx.to_pure_dict(nnx.state(state.model, nnx.Param))

    def check(path, before, after, correct):
        name = jax.tree_util.keystr(path, simple=True)
        moved, should = np.asarray(after - before), np.asarray(correct - before)
        assert (np.abs(should).max() > 0) == (config.train_embedding or name != "embedding"), name
        np.testing.assert_allclose(moved, should, rtol=2e-3, atol=3e-6 * max(1, np.abs(should).max()), err_msg=name)

    jax.tree_util.tree_map_with_path(check, start, ours, expected)
    if optimizer != "adam" and not model.tied:
        np.testing.assert_array_equal(ours["embedding"][30:], start["embedding"][30:])


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_a_softmax_without_biases_gets_none(optimizer):
    model = LanguageModel(ModelConfig(50, embedding_size=5, **BARE), np.ones(50), rngs=nnx.Rngs(0))
    state = TrainState.create(model, dataclasses.replace(TRAIN, optimizer=optimizer))
    before = np.asarray(state.tables["weights"])
    for batch in batches(2):
        state, loss = train_step(state, batch, 0.1)
    assert np.isfinite(loss) and not state.tables["biases"].any() and (state.tables["weights"] != before).any()
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.dense)]
    assert [name for name in names if "bias" in name] == ["['dense'][0]['bias']"]


@pytest.mark.parametrize("change", [{}, {"loss": "full"}, {"model": {"projection_size": 6}}])
def test_bfloat16_is_asked_of_every_product_forward_and_backward(change, monkeypatch):
    change = dict(change)
    model = dataclasses.replace(MODEL, **change.pop("model", {}))
    (batch,), products, losses = batches(1), {}, {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TRAIN, compute_dtype=dtype, **change)
        arguments = TrainState.create(make_model(model), config), batch, 0.1
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            text = jit_train_step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        jax.clear_caches()  # so that the next line compiles for the processor
        lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        rounded = ["lhs_precision_type = bf16" in line and "accumulation_type = f32" in line for line in lines]
        products[dtype] = len(lines), sum(rounded)
        losses[dtype] = train_step(*arguments)[1]
    assert products["float32"][1] == 0 and products["bfloat16"][1] == products["bfloat16"][0] >= 6, products
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)


def test_a_precision_that_the_user_asks_of_jax_is_kept():
    with jax.default_matmul_precision("highest"):
        lowered = jit_train_step.lower(TrainState.create(make_model(), TRAIN), batches(1)[0], 0.1)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    assert lines and all("HIGHEST" in line for line in lines)


def test_lazy_adam_leaves_other_rows_alone():
    (batch,) = batches(1)
    start = make_model()
    embedding = np.asarray(start.embedding[...])
    state, _ = train_step(TrainState.create(start, TRAIN), batch, 0.1)
    changed = np.unique(np.flatnonzero((np.asarray(state.tables["embedding"]) != embedding).any(axis=1)))
    np.testing.assert_array_equal(changed, np.unique(batch.inputs))


def abstract_state(vocab_size: int, optimizer: str = "adam") -> TrainState:
    model = ModelConfig(vocab_size, embedding_size=256, hidden_size=1024)
    train = TrainConfig(optimizer=optimizer, batch_size=32)
    return jax.eval_shape(lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0)), train))


@pytest.mark.parametrize("optimizer", quick_if(lambda name: name == "adam", [("adam",), ("adagrad",), ("sgd",)]))
def test_no_table_is_copied(optimizer):
    ids = jax.ShapeDtypeStruct((32, 35), jnp.int32)
    temporaries = []
    for vocab_size in (200_000, 1_000_000):
        state = abstract_state(vocab_size, optimizer)
        memory = jit_train_step.lower(state, Batch(ids, ids, False), 0.1).compile().memory_analysis()
        smallest = state.tables["embedding"].size * 4
        assert memory.temp_size_in_bytes < smallest
        assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # all of the state is in place
        temporaries.append(memory.temp_size_in_bytes)
    assert temporaries[1] < 1.02 * temporaries[0]  # flat in V


def test_step_two_does_not_compile_again():
    state = TrainState.create(make_model(), TRAIN)
    for step, batch in enumerate(batches(3)):
        learning_rate = [0.1, np.float32(0.05), jnp.float32(0.01)][step]
        state, _ = train_step(state, batch._replace(starts_epoch=step == 1), learning_rate)
        if step == 0:
            compiled = jit_train_step._cache_size()
    assert jit_train_step._cache_size() == compiled


PROGRAMS = """
import hashlib
import numpy as np
from flax import nnx
from jaxlm import Batch, LanguageModel, ModelConfig, TrainConfig, TrainState, make_mesh
from jaxlm.data.batches import shard_batch
from jaxlm.training.step import jit_train_step

ids = np.zeros((4, 3), np.int32)
for mesh in (None, make_mesh(2, 2)):
    model = LanguageModel(ModelConfig(20, embedding_size=3, hidden_size=5), rngs=nnx.Rngs(0))
    state = TrainState.create(model, TrainConfig(batch_size=4, sequence_length=3, num_sampled=5), mesh=mesh)
    program = jit_train_step.lower(state, shard_batch(Batch(ids, ids), mesh), np.float32(0.1)).as_text()
    print(hashlib.sha256(program.encode()).hexdigest())
"""


def test_every_process_makes_the_same_program():
    """The next process finds it among the compiled ones, and the processes of a mesh tell each other the same."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    programs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAMS],
            env=os.environ | {"PYTHONHASHSEED": seed, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")  # by which Python orders sets
    ]
    assert len(programs[0]) == 2 and programs[0] == programs[1]


def test_same_seed_same_bits_and_dropout_differs_from_none():
    results = []
    for dropout in (0.5, 0.5, 0.0):
        state = TrainState.create(make_model(dataclasses.replace(MODEL, dropout=dropout)), TRAIN)
        for batch in batches(3):
            state, loss = train_step(state, batch, 0.1)
        results.append((float(loss), np.asarray(state.tables["weights"])))
    assert results[0][0] == results[1][0] != results[2][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_loss_full_is_the_exact_loss():
    config = dataclasses.replace(TRAIN, loss="full")
    model, (batch,) = make_model(), batches(1)
    expected = optax.softmax_cross_entropy_with_integer_labels(model(batch.inputs)[0], batch.labels).mean()
    _, loss = train_step(TrainState.create(model, config), batch, 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_epoch_starts_from_the_zero_state():
    first, second = batches(2)
    kept, reset = (
        train_step(TrainState.create(make_model(), TRAIN), first, 0.0)[0] for _ in range(2)
    )  # a learning rate of 0: only the LSTM state changes
    fresh = TrainState.create(make_model(), TRAIN)
    fresh = dataclasses.replace(fresh, step=fresh.step + 1)  # the same candidates
    _, expected = train_step(fresh, second, 0.0)
    _, ours = train_step(reset, second._replace(starts_epoch=True), 0.0)
    _, carried = train_step(kept, second, 0.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert abs(carried - expected) > 1e-4


INPUTS, LABELS = batches(1)[0][:2]


@pytest.mark.parametrize("asarray", [np.asarray, np.ndarray.tolist])
@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.full_like(INPUTS, 50), LABELS, "Invalid `inputs`: expected ids from 0 to 49"),
        (INPUTS, np.full_like(LABELS, 50), "Invalid `labels`: expected ids from 0 to 49"),
        (np.full_like(INPUTS, 10**6), LABELS, "Received: 1000000"),
        (INPUTS, np.full_like(LABELS, -1), "Received: -1"),
        (INPUTS.astype(np.float32), LABELS, "expected integer ids"),
        (INPUTS[0], LABELS[0], "expected integer ids of shape"),
        (INPUTS[:, :-1], LABELS, "Invalid `labels`: expected the shape of the inputs"),
        (INPUTS[:2], LABELS[:2], "expected shape \\[3, sequence_length\\], as the state was made for"),
        (INPUTS[:, :0], LABELS[:, :0], "expected"),
    ],
)
def test_wrong_batches_on_the_host_raise(asarray, inputs, labels, message):
    with pytest.raises(InputError, match=message):
        train_step(TrainState.create(make_model(), TRAIN), (asarray(inputs), asarray(labels)), 0.1)


@pytest.mark.parametrize("batch", [INPUTS, (INPUTS,), "words"])
def test_what_is_not_a_batch_raises(batch):
    with pytest.raises(InputError, match="expected a Batch, or a pair of inputs and labels"):
        train_step(TrainState.create(make_model(), TRAIN), batch, 0.1)


def test_lists_are_batches_too():
    results = [
        train_step(TrainState.create(make_model(), TRAIN), batch, 0.1)[1]
        for batch in ((INPUTS, LABELS), (INPUTS.tolist(), LABELS.tolist()), Batch(jnp.array(INPUTS), jnp.array(LABELS)))
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("change", [{}, {"loss": "nce"}, {"loss": "full"}, {"sampler": "unigram"}, {"tied": True}])
@pytest.mark.parametrize("argument", ["inputs", "labels"])
@pytest.mark.parametrize("word", [50, -1, 10**6])
def test_an_invalid_id_on_the_device_makes_the_loss_nan(change, argument, word):
    change = dict(change)
    model = dataclasses.replace(MODEL, embedding_size=7, tied=change.pop("tied", False))
    batch = Batch(jnp.array(INPUTS), jnp.array(LABELS))
    state = TrainState.create(make_model(model), dataclasses.replace(TRAIN, **change), UNIGRAMS)
    _, loss = train_step(state, batch._replace(**{argument: getattr(batch, argument).at[1, 2].set(word)}), 0.1)
    assert np.isnan(loss)


@pytest.mark.parametrize(
    "change", [{}, {"clip_norm": 0.0}, {"loss": "full"}, {"optimizer": "adagrad"}, {"loss": "nce"}]
)
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(change, broken):
    config = dataclasses.replace(TRAIN, clip_norm=1.0, **change) if "clip_norm" not in change else TRAIN
    first, second, third = batches(3)
    good, _ = train_step(TrainState.create(make_model(), config), first, 0.1)
    before = jax.tree.map(np.array, dataclasses.replace(good, key=jax.random.key_data(good.key)))
    if broken == "loss":
        skipped, loss = train_step(good, Batch(jnp.array(second.inputs).at[0, 0].set(-1), second.labels), 0.1)
    else:  # a finite loss whose gradient overflows
        huge = good.tables["weights"].at[second.labels[0, 0]].set(1e38)
        tables = good.tables | {"weights": huge, "biases": good.tables["biases"].at[second.labels[0, 0]].set(-1e38)}
        before = dataclasses.replace(before, tables=jax.tree.map(np.array, tables))
        skipped, loss = train_step(dataclasses.replace(good, tables=tables), second, 0.1)
    after = jax.tree.map(np.array, dataclasses.replace(skipped, key=jax.random.key_data(skipped.key)))
    assert after.step == 2 and after.skipped.tolist() == [1, 1]
    same = dataclasses.replace(after, step=before.step, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    if broken == "loss":
        assert np.isnan(loss)
        healthy, loss = train_step(skipped, third, 0.1)
        assert np.isfinite(loss) and healthy.skipped.tolist() == [1, 0]
        assert not np.array_equal(healthy.tables["weights"], before.tables["weights"])


@pytest.mark.parametrize("starts_epoch", [False, True])
def test_exact_and_training_loss_are_those_of_full_logits_and_of_the_step(starts_epoch):
    first, batch = batches(2)
    batch = batch._replace(starts_epoch=starts_epoch)
    state, _ = train_step(TrainState.create(make_model(), TRAIN), first, 0.1)
    logits, _ = state.model(batch.inputs, None if starts_epoch else state.carry)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
    exact, sampled = exact_and_training_loss(state, batch)
    np.testing.assert_allclose(exact, expected, rtol=1e-5)
    np.testing.assert_allclose(sampled, train_step(state, batch, 0.1)[1], rtol=1e-5)
    assert sampled < exact


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"optimizer": "adagrad", "loss": "full"}])
def test_the_branches_for_accelerators_take_the_same_steps(change, monkeypatch):
    words, results = batches(3), []
    words[1] = words[1]._replace(labels=jnp.asarray(words[1].labels).at[0, 0].set(-1))  # so that it is skipped
    for platform in ("cpu", "default"):
        with branches_for(platform, monkeypatch):
            state, losses = TrainState.create(make_model(), dataclasses.replace(TRAIN, **change)), []
            for batch in words:
                state, loss = train_step(state, batch, 0.1)
                losses.append(loss)
        assert np.isnan(losses).tolist() == [False, True, False]
        results.append((losses, state.tables, state.dense, state.opt_state, state.carry, state.skipped))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), *results)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_on_a_gpu_tables_are_updated_in_place_and_the_host_is_not_asked(optimizer):
    """The program that is lowered for CUDA; it was not run on one."""
    config = dataclasses.replace(TRAIN, optimizer=optimizer, compute_dtype="bfloat16", clip_norm=1.0, num_sampled=500)
    state = jax.eval_shape(
        lambda: TrainState.create(LanguageModel(dataclasses.replace(MODEL, vocab_size=5003), rngs=nnx.Rngs(0)), config)
    )
    ids = jax.ShapeDtypeStruct((BLOCK_STEPS, 3, 2 * ACCELERATOR_UNROLL + 1), jnp.int32)
    starts, rates = (jax.ShapeDtypeStruct((BLOCK_STEPS,), dtype) for dtype in (jnp.bool, jnp.float32))
    block = BatchBlock(Batch(ids, ids, starts), rates)
    text = step_in_block.trace(state, block).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))
    assert "callback" not in text and "infeed" not in text and "outfeed" not in text
    # a choice asks the host where to go on, unless it is one by the platform, which is a constant
    by_platform = set(re.findall(r'(%\w+) = "stablehlo.case"\(%c', text))
    choices = set(re.findall(r'"stablehlo.case"\((%\w+)', text))
    assert "stablehlo.if" not in text and all(index in by_platform or index.startswith("%c") for index in choices)
    assert text.count("stablehlo.while") == 2 * MODEL.num_layers  # over the time steps, forward and backward
    operations = [
        line for line in text.splitlines() if re.search(r"= \"?stablehlo\.\w+.*tensor<5003(x\d+)?xf32>$", line)
    ]
    assert not operations  # that make a whole table, such as a dense gradient; scatters end in a line of their own
    assert text.count("stablehlo.scatter") >= 3
