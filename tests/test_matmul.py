"""Products with bfloat16 factors: where they are asked for, how they round, and that they are reproducible."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.checks import predictor
from jaxlm.config import DenseConfig, ModelConfig, TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.inference import batch_reader, generation, neighbors
from jaxlm.inference.perplexity import exact_loss
from jaxlm.matmul import fast_dtype, matmul, product_precision, transposed
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import LSTM
from jaxlm.model.params import split_params
from jaxlm.training.batch_losses import exact_and_training_loss
from jaxlm.training.state import TrainState
from jaxlm.training.step import jit_train_step, train_step

MODEL = ModelConfig(37, embedding_size=5, hidden_size=7, num_layers=2, projection_size=6)
TRAIN = TrainConfig(batch_size=3, sequence_length=4, num_sampled=12, compute_dtype="bfloat16")


def make_state(**change):
    rngs = nnx.Rngs(0)
    return TrainState.create(LanguageModel(MODEL, rngs=rngs), dataclasses.replace(TRAIN, **change))


def make_batch():
    words = np.random.default_rng(0).integers(0, 37, (3, 5)).astype(np.int32)
    return Batch(words[:, :-1], words[:, 1:], True)


def relative_error(found, expected):
    return float(jnp.linalg.norm(jnp.ravel(found - expected)) / jnp.linalg.norm(jnp.ravel(expected)))


def test_products_and_gradients_round_as_bfloat16_does():
    a, b, d = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 300), (300, 7), (5, 7)]))
    exact, vjp = jax.vjp(lambda a, b: a @ b, a, b)
    found, our_vjp = jax.vjp(lambda a, b: matmul(a, b, "bfloat16"), a, b)
    for one, other in zip((found, *our_vjp(d)), (exact, *vjp(d)), strict=True):
        assert one.dtype == jnp.float32
        assert 1e-5 < relative_error(one, other) < 4e-3
    rounded = a.astype(jnp.bfloat16).astype(jnp.float32) @ b.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(found, rounded, rtol=1e-5, atol=1e-5)  # the sums are float32
    np.testing.assert_array_equal(matmul(a, b), a @ b)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 5), (5, 4), (6, 2)])
def test_transposed_is_the_transpose(shape):
    x = jnp.arange(shape[0] * shape[1]).reshape(shape)
    np.testing.assert_array_equal(transposed(x), x.T)


@pytest.mark.parametrize("loss", ["sampled_softmax", "nce", "full"])
def test_every_product_of_a_step_has_bfloat16_factors_in_row_major_order(loss):
    text = jit_train_step.lower(make_state(loss=loss), make_batch(), 0.1).as_text()
    products = re.findall(r"stablehlo.dot_general.*", text)
    # of two layers: forward loop, backward loop, two kernels, inputs; of the bottleneck; of the softmax
    assert len(products) == 2 * (1 + 1 + 2 + 1) + 3 + 3
    for line in products:
        assert re.search(r"contracting_dims = \[1\] x \[0\]", line), line
        assert re.search(r"\(tensor<[\dx]+xbf16>, tensor<[\dx]+xbf16>\) -> tensor<[\dx]+xf32>", line), line


def test_the_compiled_step_multiplies_bfloat16():
    """XLA may yet turn a product into one of float32: where it folds a transposition into it, for example."""
    if fast_dtype() != "bfloat16":
        pytest.skip("this processor multiplies no bfloat16")
    model = ModelConfig(5000, embedding_size=64, hidden_size=128, dense=(DenseConfig(96),))
    config = dataclasses.replace(TRAIN, batch_size=8, sequence_length=6, num_sampled=200)
    state = TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0)), config)
    ids = jnp.zeros((8, 6), jnp.int32)
    text = jit_train_step.lower(state, Batch(ids, ids, True), 0.1).compile().as_text()
    types: dict[str, str] = {}
    products = []
    for line in text.splitlines():
        name, _, value = line.strip().removeprefix("ROOT ").partition(" = ")
        types[name] = value.split("[")[0]
        operands = re.search(r" dot\((%[\w.-]+), (%[\w.-]+)\)", value)
        if operands:
            products.append([types[operand] for operand in operands.groups()])
    lstm, dense, loss = 1 + 4, 3, 3  # the LSTM's forward loop has one product, of inputs and state
    assert len(products) == lstm + dense + loss and products == [["bf16", "bf16"]] * len(products)


@pytest.mark.parametrize("sizes", [pytest.param((1, 1, 1, 1, 1), marks=pytest.mark.exhaustive), (3, 5, 7, 9, 11)])
def test_any_sizes_are_multiplied(sizes):
    batch, time, embedding, hidden, dense = sizes
    model = ModelConfig(20, embedding_size=embedding, hidden_size=hidden, dense=(DenseConfig(dense),))
    words = np.random.default_rng(0).integers(0, 20, (batch, time + 1)).astype(np.int32)
    weights = []
    for dtype in ("float32", "bfloat16"):
        config = TrainConfig(
            batch_size=batch, sequence_length=time, num_sampled=3, optimizer="sgd", compute_dtype=dtype
        )
        state = TrainState.create(LanguageModel(model, rngs=nnx.Rngs(0)), config)
        state, loss = train_step(state, (words[:, :-1], words[:, 1:]), 0.1)
        assert np.isfinite(loss)
        weights.append(state.tables["weights"])
    np.testing.assert_allclose(*weights, atol=2e-2)


def test_a_float32_step_has_none():
    assert "bf16" not in jit_train_step.lower(make_state(compute_dtype="float32"), make_batch(), 0.1).as_text()


@pytest.mark.parametrize("time", [2, 6])
def test_an_lstm_is_that_of_flax_within_the_rounding(time):
    ours = LSTM(5, 7, rngs=nnx.Rngs(1))
    cell = nnx.OptimizedLSTMCell(5, 7, rngs=nnx.Rngs(0))
    cell.dense_i.kernel = nnx.Param(ours.kernel[...])
    cell.dense_h.kernel, cell.dense_h.bias = nnx.Param(ours.recurrent_kernel[...]), nnx.Param(ours.bias[...])
    inputs, zeros = jax.random.normal(jax.random.key(2), (3, time, 5)), jnp.zeros((3, 7))

    def theirs(inputs):
        carry, outputs = (zeros, zeros), []
        for step in range(time):
            carry, output = cell(carry, inputs[:, step])
            outputs.append(output)
        return jnp.stack(outputs, axis=1)

    expected, vjp = jax.vjp(theirs, inputs)
    found, our_vjp = jax.vjp(lambda inputs: ours(inputs, (zeros, zeros), "bfloat16")[0], inputs)
    assert relative_error(found, expected) < 1e-2
    assert relative_error(our_vjp(expected)[0], vjp(expected)[0]) < 2e-2


@pytest.mark.parametrize("loss", ["sampled_softmax", "full"])
def test_steps_are_near_those_of_float32_and_the_same_from_run_to_run(loss):
    tables = []
    for dtype in ("float32", "bfloat16", "bfloat16"):
        state = make_state(compute_dtype=dtype, optimizer="sgd", loss=loss)
        start = jax.tree.map(np.asarray, state.tables)
        state, _ = train_step(state, make_batch(), 1.0)
        tables.append({name: np.asarray(table) - start[name] for name, table in state.tables.items()})
    for name, exact in tables[0].items():
        assert 0 < relative_error(tables[1][name], exact) < 2e-2, name
        np.testing.assert_array_equal(tables[1][name], tables[2][name])


def test_auto_is_what_the_machine_does_fast(monkeypatch):
    assert make_state(compute_dtype="auto").config.compute_dtype == fast_dtype()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for flags, expected in (("avx2 fma", "float32"), ("avx512_bf16", "bfloat16"), ("amx_tile amx_bf16", "bfloat16")):
        monkeypatch.setattr("pathlib.Path.read_text", lambda *_, flags=flags, **__: f"flags : {flags}\n")
        assert fast_dtype() == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capabilities, expected in (
        (["7.5"], "float32"),  # a T4
        (["8.0"], "bfloat16"),  # an A100
        (["8.9", "7.5"], "float32"),
        (["12.0"], "bfloat16"),
        (["gfx90a"], "bfloat16"),  # of AMD
        ([None], "bfloat16"),  # a TPU
    ):
        devices = [SimpleNamespace(**{"compute_capability": c} if c else {}) for c in capabilities]
        monkeypatch.setattr(jax, "devices", lambda devices=devices: devices)
        assert fast_dtype() == expected
        with product_precision("bfloat16"):  # a run of another machine may ask for it: XLA then rounds operands itself
            text = jax.jit(jnp.matmul).trace(jnp.ones((2, 2)), jnp.ones((2, 2))).lower(lowering_platforms=("cuda",))
        assert ("algorithm" in text.as_text()) == (expected == "bfloat16")


def answers_of_a_model():
    """Compiled functions whose results a user sees, with arguments."""
    model = make_state(compute_dtype="float32").model
    graphdef, params = nnx.split(model)
    structure, *arrays = split_params(model)
    ids, carry, word = np.ones((1, 4), np.int32), model.initial_carry(1), jnp.int32(1)
    weighted = Batch(ids, ids, False, weights=np.ones((1, 4), np.float32))
    outputs, banned, numbers = jnp.ones((4, 6)), jnp.zeros(37, bool), (np.float32(1), np.float32(1))
    choice, keys = generation._Choice(0, False), jax.random.split(jax.random.key(0), 1)
    return {
        "evaluation": (exact_loss, structure, arrays, weighted, carry),
        "log of both losses": (exact_and_training_loss, make_state(compute_dtype="float32"), make_batch()),
        "training in float32": (jit_train_step, make_state(compute_dtype="float32"), make_batch(), 0.1),
        "scores, the LSTM": (batch_reader._outputs, graphdef, params, ids, carry),
        "scores, the softmax": (batch_reader._statistics, graphdef, params, outputs, np.ones(4, np.int32)),
        "prompt": (generation.read_word, graphdef, params, word, carry),
        "generation": (
            generation._next_words, graphdef, choice, params, word[None], carry, banned, numbers, keys, np.uint32(0)
        ),
        "neighbors": (neighbors._nearest, model.input_rows, word, banned, 3),
        "next words": (neighbors._most_likely, graphdef, params, outputs[:1], 3),
        "verification": (predictor._run, graphdef, params, ids),
    }  # fmt: skip


@pytest.mark.parametrize("asked", [None, "tensorfloat32"])
def test_a_gpu_rounds_no_factor_of_float32_unless_the_user_asks_jax(asked):
    answers = answers_of_a_model()
    for name in ("evaluation", "training in float32") if asked else answers:
        function, *arguments = answers[name]
        with jax.default_matmul_precision(asked):
            text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        exact = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert products and len(exact) == (0 if asked else len(products)), name
