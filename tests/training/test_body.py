"""Models that are not a `LanguageModel`: their bodies, tables, optimizers and the order of their ids."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import make_random_model

from jaxlm.config import TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.errors import InputError
from jaxlm.training.batch_losses import exact_batch_loss
from jaxlm.training.body import BodyOutputs, merge_trees, split_tree
from jaxlm.training.settings import class_order
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

V, ITEMS, USERS = 13, 11, 7
EXACT = TrainConfig(batch_size=4, num_sampled=V, sampler="uniform", clip_norm=0.0, compute_dtype="float32", seed=3)
RNG = np.random.default_rng(0)


class Mixer(nnx.Module):
    """A body with a moving average, a second input and a loss of its own."""

    def __init__(self):
        self.linear = nnx.Linear(5, 6, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

    def __call__(self, items, more_items, user, price):
        hidden = self.linear(items + more_items) + user[:, None] * price[:, None, None]
        return self.norm(jnp.tanh(hidden))


GRAPH, *STATES = nnx.split(Mixer(), nnx.Param, ...)
PARAMS, STATS = (jax.tree.map(np.asarray, nnx.to_pure_dict(state)) for state in STATES)  # donated copies of these


def mixer(dense, other, rows, features, carry, key):
    module = nnx.merge(GRAPH, dense, other)
    module.norm.use_running_average = key is None
    hidden = module(*rows, features)
    penalty = 0.01 * jnp.square(module.linear.kernel[...]).sum()
    return BodyOutputs(hidden, carry, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), penalty)


def arrays():
    rng = np.random.default_rng(1)
    shapes = {"items": (ITEMS, 5), "users": (USERS, 6), "weights": (V, 6), "biases": (V,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def batches(count=3):
    for _ in range(count):
        ids = RNG.integers(0, ITEMS, (2, 4, 3)).astype(np.int32)
        users = RNG.integers(0, USERS, 4).astype(np.int32)
        labels = RNG.integers(0, V, (4, 3)).astype(np.int32)
        yield Batch((*ids, users), labels, weights=RNG.random((4, 3), np.float32), features=RNG.random(4, np.float32))


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.3), lambda: optax.adagrad(optax.linear_schedule(0.3, 0.0, 5))])
def test_steps_equal_dense_optax(make):
    """With every class a candidate, and several lookups of which two read the same table."""
    tx, words = make(), list(batches())
    names = {"lookups": ("items", "items", "users"), "other": STATS}
    state = TrainState.for_body(mixer, arrays(), PARAMS, EXACT, tx=tx, **names)
    params, stats = jax.tree.map(jnp.array, ({"tables": arrays(), "dense": PARAMS}, STATS))
    opt_state = tx.init(params)

    def loss(params, stats, batch):
        tables = params["tables"]
        rows = tuple(tables[name][ids] for name, ids in zip(names["lookups"], batch.inputs, strict=True))
        hidden, _, stats, penalty = mixer(params["dense"], stats, rows, batch.features, (), jax.random.key(0))
        logits = hidden @ tables["weights"].T + tables["biases"][None, None, :]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return (losses * batch.weights).mean() + penalty, stats

    @jax.jit
    def step(params, stats, opt_state, batch):
        (expected, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return expected, optax.apply_updates(params, updates), stats, opt_state

    for batch in words:
        expected, params, stats, opt_state = step(params, stats, opt_state, batch)
        state, found = train_step(state, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    ours = {"tables": state.tables, "dense": state.dense, "stats": state.other}
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves({**params, "stats": stats}), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_frozen_tables_stay_and_evaluation_uses_moving_averages():
    names = {"lookups": ("items", "items", "users"), "other": STATS, "frozen": ("users", "biases")}
    state = TrainState.for_body(mixer, arrays(), PARAMS, EXACT, tx=optax.adamw(0.1), **names)
    batch = next(batches())
    state, _ = train_step(state, batch)
    for name, before in arrays().items():
        assert np.array_equal(state.tables[name], before) == (name in names["frozen"]), name
    rows = tuple(state.tables[name][ids] for name, ids in zip(names["lookups"], batch.inputs, strict=True))
    outputs = mixer(state.dense, state.other, rows, batch.features, (), None)
    logits = outputs.hidden @ state.tables["weights"].T + state.tables["biases"][None, None, :]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels) * batch.weights
    np.testing.assert_allclose(exact_batch_loss(state, batch), losses.mean() + outputs.loss, rtol=1e-5)


def test_frozen_parameters_of_the_language_model_stay():
    frozen = ("embedding", "lstms/0/kernel")
    state = TrainState.create(make_random_model(), TrainConfig(batch_size=2, num_sampled=9), frozen=frozen)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(state.model, nnx.Param)))
    ids = RNG.integers(0, 23, (2, 5)).astype(np.int32)
    state, _ = train_step(state, (ids[:, :-1], ids[:, 1:]), 0.1)

    def check(path, old, new):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.array_equal(old, new) == (name in frozen), name

    jax.tree_util.tree_map_with_path(check, before, nnx.to_pure_dict(nnx.state(state.model, nnx.Param)))


def test_an_order_of_ids_equals_sorted_ids():
    """The steps of a model whose ids are in any order are those of the same model with ids sorted by frequency."""
    counts = RNG.integers(1, 100, 23)
    order = jax.tree.map(np.asarray, class_order(counts))
    ids = RNG.integers(0, 23, (2, 5)).astype(np.int32)
    config = TrainConfig(batch_size=2, num_sampled=9, clip_norm=1.0)
    shuffled, ordered = make_random_model(), make_random_model()
    for table in ("embedding", "weights", "biases"):
        setattr(ordered, table, nnx.Param(getattr(shuffled, table)[...][order.ids]))
    ours = TrainState.create(shuffled, config, order=order)
    theirs = TrainState.create(make_random_model(), config)
    theirs.tables.update({name: jnp.asarray(getattr(ordered, name)[...]) for name in theirs.tables})
    ranks = order.ranks[ids]
    ours, our_loss = train_step(ours, (ids[:, :-1], ids[:, 1:]), 0.1)
    theirs, loss = train_step(theirs, (ranks[:, :-1], ranks[:, 1:]), 0.1)
    assert our_loss == pytest.approx(float(loss), rel=1e-6)
    for name, table in ours.tables.items():
        np.testing.assert_allclose(table[order.ids], theirs.tables[name], rtol=1e-5, atol=1e-6)


def test_a_body_needs_its_tables_and_as_many_ids():
    with pytest.raises(InputError, match="`tables`: expected.*Received: \"none named \\['embedding'\\]"):
        TrainState.for_body(mixer, arrays(), PARAMS, EXACT)
    state = TrainState.for_body(mixer, arrays(), PARAMS, EXACT, lookups=("items", "items", "users"), other=STATS)
    batch = next(batches())
    with pytest.raises(InputError, match="`inputs`: expected 3 arrays of ids"):
        train_step(state, batch._replace(inputs=batch.inputs[:2]), 0.1)
    with pytest.raises(InputError, match="`learning_rate`: expected a learning rate"):
        train_step(state, batch)
    with pytest.raises(InputError, match="`inputs`: expected ids from 0 to 6"):
        train_step(state, batch._replace(inputs=(*batch.inputs[:2], batch.inputs[2] + USERS)), 0.1)


def test_split_and_merged_trees():
    tree = {"a": {0: {"x": 1, "y": 2}}, "b": 3}
    rest, named = split_tree(tree, frozenset({"a/0/y", "b"}))
    assert (rest, named) == ({"a": {0: {"x": 1}}}, {"a": {0: {"y": 2}}, "b": 3})
    assert merge_trees(rest, named) == tree
