"""Parameters of Flax models, checked against Flax: linen and nnx, LSTMCell and OptimizedLSTMCell."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convert
from jaxlm.errors import InputError

V, E, H, LAYERS = 23, 5, 7, 2
IDS = np.random.default_rng(0).integers(0, V, (2, 6))


def randomized(tree):
    keys = iter(jax.random.split(jax.random.key(0), 999))
    return jax.tree.map(lambda leaf: 0.4 * jax.random.normal(next(keys), leaf.shape), tree)


def linen(cell):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            outputs = nn.Embed(V, E)(ids)
            for _ in range(LAYERS):
                outputs = nn.RNN(cell(H))(outputs)
            return nn.Dense(V)(outputs)

    model = Model()
    params = randomized(model.init(jax.random.key(0), IDS)["params"])
    return params, model.apply({"params": params}, IDS)


def nnx_model(cell):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(V, E, rngs=rngs)
            self.rnns = nnx.List([nnx.RNN(cell(H if n else E, H, rngs=rngs)) for n in range(LAYERS)])
            self.head = nnx.Linear(H, V, rngs=rngs)

        def __call__(self, ids):
            outputs = self.embed(ids)
            for rnn in self.rnns:
                outputs = rnn(outputs)
            return self.head(outputs)

    model = Model(nnx.Rngs(0))
    nnx.update(model, randomized(nnx.state(model, nnx.Param)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), model(jnp.asarray(IDS))


@pytest.mark.parametrize("make", [linen, nnx_model])
@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell"])
def test_an_imported_model_computes_what_flax_computes(make, name):
    with jax.numpy_rank_promotion("allow"):  # Flax adds biases by rank promotion
        tree, expected = make(getattr(nn if make is linen else nnx, name))
    model = convert.from_flax(tree)
    assert len(model.config.lstms) == LAYERS
    np.testing.assert_allclose(model(IDS)[0], expected, atol=1e-5)


def test_more_than_ten_layers_keep_their_order():
    def cell(n):
        return {"dense_i": {"kernel": np.zeros((H, 4 * H))}, "dense_h": {"kernel": np.zeros((H, 4 * H)), "bias": n}}

    tree = {f"cell_{n}": cell(np.full(4 * H, n, np.float32)) for n in reversed(range(12))}
    tree |= {"embed": {"embedding": np.zeros((V, H))}, "head": {"kernel": np.zeros((H, V)), "bias": np.zeros(V)}}
    assert [int(lstm.bias[0]) for lstm in convert.from_flax(tree).lstms] == list(range(12))


def test_a_tree_of_another_model_is_refused():
    dense = {"kernel": np.zeros((H, V)), "bias": np.zeros(V)}
    for tree, message in (
        ({"a": dense}, "expected one embedding"),
        (
            {"a": {"embedding": np.zeros((V, E))}, "b": {"scale": np.zeros(3)}, "d": dense},
            "Received: b/scale",
        ),
        ({"a": {"embedding": np.zeros((V, E))}, "d": dense}, "not those of Embedding"),
    ):
        with pytest.raises(InputError, match=message):
            convert.from_flax(tree)


@pytest.mark.parametrize("make", [linen, nnx_model])
def test_a_wrong_order_of_gates_is_noticed(make, monkeypatch):
    with jax.numpy_rank_promotion("allow"):
        tree, _ = make((nn if make is linen else nnx).LSTMCell)
    monkeypatch.setattr("convert.formats.flax_params.GATES", ("i", "g", "f", "o"))
    with pytest.raises(InputError, match="differs from its source"):
        convert.from_flax(tree)
