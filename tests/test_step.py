"""A whole training step against plain autodiff through full tables and dense Optax; memory; determinism."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlm.candidate_sampling.distributions import unigram_table
from jaxlm.candidate_sampling.samplers import (
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.losses import nce_loss, sampled_softmax_loss
from jaxlm.model import LanguageModel
from jaxlm.train_state import TrainState, exact_and_training_loss, learning_rate, train_step

MODEL = ModelConfig(50, embedding_size=5, hidden_size=7, num_layers=2)
TRAIN = TrainConfig(batch_size=3, sequence_length=4, num_sampled=12, clip_norm=0.0, initial_accumulator_value=1e-9)


UNIGRAMS = np.arange(1, 51)


def make_model(config: ModelConfig = MODEL) -> LanguageModel:
    """A model with random biases, too, so that nothing is hidden by a zero."""
    model = LanguageModel(config, rngs=nnx.Rngs(1))
    model.biases[...] = jax.random.normal(jax.random.key(2), model.biases.shape)
    for lstm in model.lstms:
        lstm.bias[...] += jax.random.normal(jax.random.key(3), lstm.bias.shape)
    return model


def batches(count: int, config: TrainConfig = TRAIN) -> np.ndarray:
    shape = (count, config.batch_size, config.sequence_length + 1)
    return np.random.default_rng(4).integers(0, 30, shape).astype(np.int32)  # ids from 30 on never come


def dense_training(config: TrainConfig, model: LanguageModel, words: np.ndarray) -> dict:
    """What the steps should do: every table a dense parameter, optax as a user would write it."""
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    rules = {
        "sgd": optax.sgd(0.1),
        "adagrad": optax.adagrad(0.1, config.initial_accumulator_value),
        "adam": optax.adam(0.1),
    }
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    transform = optax.chain(*clip, rules[config.optimizer])
    opt_state, carry = transform.init(params), model.initial_carry(config.batch_size)
    for step, batch in enumerate(words):
        inputs, labels = batch[:, :-1], batch[:, 1:].reshape(-1, 1)
        sampling_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))

        def loss(params, inputs=inputs, labels=labels, key=sampling_key, carry=carry):
            model = nnx.merge(graphdef, params)
            hidden, new_carry = model.hidden(model.embed(inputs), carry)
            hidden = hidden.reshape(-1, hidden.shape[-1])
            if config.exact:
                logits = hidden @ model.weights[...].T + model.biases[...][None, :]
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, 0]).mean(), new_carry
            sampling = (key, labels, config.num_sampled, True, MODEL.vocab_size)
            if config.sampler == "unigram":
                values = fixed_unigram_candidate_sampler(*sampling, unigram_table(UNIGRAMS))
            elif config.sampler == "uniform":
                values = uniform_candidate_sampler(*sampling)
            else:
                values = log_uniform_candidate_sampler(*sampling)
            loss_of = nce_loss if config.loss == "nce" else sampled_softmax_loss
            losses = loss_of(model.weights[...], model.biases[...], labels, hidden, config.num_sampled, 50, 1, values)
            return losses.mean(), new_carry

        gradients, carry = jax.jit(jax.grad(loss, has_aux=True))(params)
        updates, opt_state = transform.update(gradients, opt_state)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adagrad"},
        {"optimizer": "adagrad", "clip_norm": 0.02},
        {"optimizer": "adagrad", "num_sampled": 0, "clip_norm": 0.02},
        {"optimizer": "adam", "loss": "full"},
        {"optimizer": "sgd", "sampler": "uniform", "clip_norm": 0.02},
        {"optimizer": "sgd", "sampler": "unigram", "model": {"projection_size": 3}},
        {"optimizer": "adagrad", "loss": "nce", "clip_norm": 0.02},
        {"optimizer": "adagrad", "model": {"projection_size": 5, "tied": True}, "clip_norm": 0.02},
        {"optimizer": "sgd", "model": {"embedding_size": 7, "tied": True}, "loss": "full"},
    ],
)
def test_steps_equal_dense_optax(change):
    change = dict(change)
    model = dataclasses.replace(MODEL, **change.pop("model", {}))
    config = dataclasses.replace(TRAIN, **change)
    optimizer = config.optimizer
    # lazy Adam equals the dense step where the same rows come every time
    words = np.repeat(batches(1), 2, axis=0) if optimizer == "adam" else batches(2)
    start = nnx.to_pure_dict(nnx.state(make_model(model), nnx.Param))
    expected = dense_training(config, make_model(model), words)
    state = TrainState.create(make_model(model), config, UNIGRAMS)
    for batch in words:
        state, _ = train_step(state, batch[:, :-1], batch[:, 1:], 0.1)
    ours = nnx.to_pure_dict(nnx.state(state.model, nnx.Param))

    def check(path, before, after, correct):
        name = jax.tree_util.keystr(path, simple=True)
        moved, should = np.asarray(after - before), np.asarray(correct - before)
        assert np.abs(should).max() > 0, name
        np.testing.assert_allclose(moved, should, rtol=2e-3, atol=3e-6 * max(1, np.abs(should).max()), err_msg=name)

    jax.tree_util.tree_map_with_path(check, start, ours, expected)
    if optimizer != "adam" and not model.tied:
        np.testing.assert_array_equal(ours["embedding"][30:], start["embedding"][30:])


@pytest.mark.parametrize("change", [{}, {"loss": "full"}, {"model": {"projection_size": 6}}])
def test_bfloat16_is_asked_of_every_product_forward_and_backward(change):
    change = dict(change)
    model = dataclasses.replace(MODEL, **change.pop("model", {}))
    words, products, losses = batches(1)[0], {}, {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TRAIN, compute_dtype=dtype, **change)
        arguments = TrainState.create(make_model(model), config), words[:, :-1], words[:, 1:], 0.1
        text = train_step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        rounded = ["lhs_precision_type = bf16" in line and "accumulation_type = f32" in line for line in lines]
        products[dtype] = len(lines), sum(rounded)
        losses[dtype] = train_step(*arguments)[1]
    assert products["float32"][1] == 0 and products["bfloat16"][1] == products["bfloat16"][0] >= 6, products
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)


def test_a_precision_that_the_user_asks_of_jax_is_kept():
    words = batches(1)[0]
    with jax.default_matmul_precision("highest"):
        lowered = train_step.lower(TrainState.create(make_model(), TRAIN), words[:, :-1], words[:, 1:], 0.1)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    assert lines and all("HIGHEST" in line for line in lines)


def test_lazy_adam_leaves_other_rows_alone():
    words = batches(1)[0]
    start = make_model()
    embedding = np.asarray(start.embedding[...])
    state, _ = train_step(TrainState.create(start, TRAIN), words[:, :-1], words[:, 1:], 0.1)
    changed = np.unique(np.flatnonzero((np.asarray(state.tables["embedding"]) != embedding).any(axis=1)))
    np.testing.assert_array_equal(changed, np.unique(words[:, :-1]))


def abstract_state(vocab_size: int, optimizer: str = "adam") -> TrainState:
    model = ModelConfig(vocab_size, embedding_size=256, hidden_size=1024)
    train = TrainConfig(optimizer=optimizer, batch_size=32)
    return jax.eval_shape(lambda: TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0)), train))


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_no_table_is_copied(optimizer):
    ids = jax.ShapeDtypeStruct((32, 35), jnp.int32)
    temporaries = []
    for vocab_size in (200_000, 1_000_000):
        state = abstract_state(vocab_size, optimizer)
        memory = train_step.lower(state, ids, ids, 0.1).compile().memory_analysis()
        smallest = state.tables["embedding"].size * 4
        assert memory.temp_size_in_bytes < smallest
        assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # all of the state is in place
        temporaries.append(memory.temp_size_in_bytes)
    assert temporaries[1] < 1.02 * temporaries[0]  # flat in V


def test_step_two_does_not_compile_again():
    state = TrainState.create(make_model(), TRAIN)
    for step, batch in enumerate(batches(3)):
        state, _ = train_step(state, batch[:, :-1], batch[:, 1:], np.float32(0.1 / (step + 1)))
        if step == 0:
            compiled = train_step._cache_size()
    assert train_step._cache_size() == compiled


def test_same_seed_same_bits_and_dropout_differs_from_none():
    results = []
    for dropout in (0.5, 0.5, 0.0):
        state = TrainState.create(make_model(dataclasses.replace(MODEL, dropout=dropout)), TRAIN)
        for batch in batches(3):
            state, loss = train_step(state, batch[:, :-1], batch[:, 1:], 0.1)
        results.append((float(loss), np.asarray(state.tables["weights"])))
    assert results[0][0] == results[1][0] != results[2][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_exact_loss_is_what_full_softmax_reports():
    config = dataclasses.replace(TRAIN, num_sampled=0)
    model, words = make_model(), batches(1)[0]
    hidden, _ = model.hidden(model.embedding[words[:, :-1]], model.initial_carry(3))
    expected = softmax_loss(model.weights[...], model.biases[...], words[:, 1:].reshape(-1), hidden.reshape(-1, 7))
    _, loss = train_step(TrainState.create(model, config), words[:, :-1], words[:, 1:], 0.1)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_learning_rate_rises_stays_and_falls():
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, decay_fraction=0.5)
    rates = [learning_rate(config, step, 20) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[4:11], 1.0)
    np.testing.assert_allclose(rates[10:], np.linspace(1, 0, 11))
    assert learning_rate(config, 10**6, 0) == 1.0  # no decay while the length is not known


def test_more_candidates_than_words_raise():
    with pytest.raises(InputError, match="num_sampled"):
        TrainState.create(make_model(), dataclasses.replace(TRAIN, num_sampled=51))
    for unigrams in (None, np.ones(49)):
        with pytest.raises(InputError, match="unigrams"):
            TrainState.create(make_model(), dataclasses.replace(TRAIN, sampler="unigram"), unigrams)


def test_exact_and_training_loss_are_those_of_full_logits_and_of_the_step():
    words = batches(1)[0]
    inputs, labels = words[:, :-1], words[:, 1:]
    model = make_model()
    logits = model(inputs)[0]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    state = TrainState.create(model, TRAIN)
    exact, sampled = exact_and_training_loss(state, inputs, labels)
    np.testing.assert_allclose(exact, expected, rtol=1e-5)
    np.testing.assert_allclose(sampled, train_step(state, inputs, labels, 0.1)[1], rtol=1e-5)
    assert sampled < exact
