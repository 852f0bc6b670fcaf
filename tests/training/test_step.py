"""A training step against the exact loss, and over several steps: determinism, epochs, steps that are skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import BARE, branches_for
from step_helpers import MODEL, TRAIN, batches, make_model

from jaxlm.config import ModelConfig
from jaxlm.data.batches import Batch
from jaxlm.model.language_model import LanguageModel
from jaxlm.training.batch_losses import exact_and_training_loss
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step


def test_a_softmax_without_biases_gets_none():
    model = LanguageModel(ModelConfig(50, embedding_size=5, **BARE), np.ones(50), rngs=nnx.Rngs(0))
    state = TrainState.create(model, TRAIN)
    before = np.asarray(state.tables["weights"])
    for batch in batches(2):
        state, loss = train_step(state, batch, 0.1)
    assert np.isfinite(loss) and not state.tables["biases"].any() and (state.tables["weights"] != before).any()
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.dense)]
    assert [name for name in names if "bias" in name] == ["['dense'][0]['bias']"]


def test_lazy_adam_leaves_other_rows_alone():
    (batch,) = batches(1)
    start = make_model()
    embedding = np.asarray(start.embedding[...])
    state, _ = train_step(TrainState.create(start, TRAIN), batch, 0.1)
    changed = np.unique(np.flatnonzero((np.asarray(state.tables["embedding"]) != embedding).any(axis=1)))
    np.testing.assert_array_equal(changed, np.unique(batch.inputs))


def test_same_seed_same_bits_and_dropout_differs_from_none():
    results = []
    for dropout in (0.5, 0.5, 0.0):
        state = TrainState.create(make_model(dataclasses.replace(MODEL, dropout_rates=(dropout,) * 3)), TRAIN)
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


@pytest.mark.parametrize("change", [{}, {"clip_norm": 0.0, "loss": "full"}, {"optimizer": "adagrad", "loss": "nce"}])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(change, broken):
    config = dataclasses.replace(TRAIN, **{"clip_norm": 1.0} | change)
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


def test_the_branches_for_accelerators_take_the_same_steps(monkeypatch):
    config = dataclasses.replace(TRAIN, optimizer="adagrad", loss="full")
    words, results = batches(3), []
    words[1] = words[1]._replace(labels=jnp.asarray(words[1].labels).at[0, 0].set(-1))  # so that it is skipped
    for platform in ("cpu", "default"):
        with branches_for(platform, monkeypatch):
            state, losses = TrainState.create(make_model(), config), []
            for batch in words:
                state, loss = train_step(state, batch, 0.1)
                losses.append(loss)
        assert np.isnan(losses).tolist() == [False, True, False]
        results.append((losses, state.tables, state.dense, state.opt_state, state.carry, state.skipped))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), *results)
