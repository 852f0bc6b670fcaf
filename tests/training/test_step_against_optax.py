"""A whole training step against plain autodiff through full tables and dense Optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import CHAIN
from step_helpers import MODEL, TRAIN, UNIGRAMS, batches, make_model

from jaxlm.candidate_sampling.distributions import unigram_table
from jaxlm.candidate_sampling.samplers import (
    fixed_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from jaxlm.config import TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.losses.sampled import nce_loss, sampled_softmax_loss
from jaxlm.model.language_model import LanguageModel
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step


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
    decay = optax.add_decayed_weights(config.weight_decay)
    transform = optax.chain(*frozen, *clip, decay, rules[config.optimizer])

    def loss(params, batch, key, carry):
        model = nnx.merge(graphdef, params)
        labels, positions = batch.labels.reshape(-1, 1), batch.positions
        w = (1 if batch.weights is None else batch.weights.reshape(-1)) / labels.size
        hidden, new_carry = model.hidden(model.embed(batch.inputs), carry)
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

    @jax.jit
    def step(params, opt_state, batch, key, carry):
        gradients, carry = jax.grad(loss, has_aux=True)(params, batch, key, carry)
        updates, opt_state = transform.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry

    opt_state, carry = transform.init(params), model.initial_carry(config.batch_size)
    for number, batch in enumerate(words):
        sampling_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number))
        params, opt_state, carry = step(params, opt_state, batch, sampling_key, carry)
    return params


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adagrad", "clip_norm": 0.02},
        {"optimizer": "adam", "loss": "full"},
        {"optimizer": "sgd", "sampler": "uniform", "clip_norm": 0.02, "clip_each": True},
        {
            "optimizer": "sgd",
            "sampler": "unigram",
            "model": {"projection_size": 3},
            "clip_norm": 0.02,
            "train_embedding": False,
        },
        {"optimizer": "adagrad", "loss": "nce", "clip_norm": 0.02, "labels": labels_somewhere},
        {"optimizer": "adagrad", "model": {"projection_size": 5, "tied": True}, "clip_norm": 0.02},
        {
            "optimizer": "sgd",
            "model": {"embedding_size": 7, "tied": True},
            "loss": "full",
            "clip_norm": 0.02,
            "weight_decay": 0.1,
        },
        {"optimizer": "adagrad", "model": CHAIN, "labels": labels_somewhere},
        *(
            pytest.param(change, marks=pytest.mark.exhaustive)
            for change in (
                {"optimizer": "adagrad"},
                {"optimizer": "adagrad", "clip_norm": 0.02, "clip_each": True, "loss": "full"},
                {"optimizer": "sgd", "labels": labels_somewhere, "loss": "full"},
            )
        ),
    ],
)
def test_steps_equal_dense_optax(change):
    change = dict(change)
    model = dataclasses.replace(MODEL, **{"dropout_rates": ()} | change.pop("model", {}))
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
