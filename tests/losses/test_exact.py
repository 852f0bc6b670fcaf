"""The exact loss against that of the full logits."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.errors import InputError
from jaxlm.losses.exact import KEPT_BYTES, exact_losses, linear_cross_entropy
from jaxlm.losses.word_statistics import word_statistics


@pytest.mark.parametrize("kept_bytes", [0, KEPT_BYTES])
@pytest.mark.parametrize(("vocab_size", "block_size"), [(1, 4), (7, 7), (23, 5), (20, 5), (23, 100)])
def test_losses_and_gradients_equal_those_of_full_logits(vocab_size, block_size, kept_bytes):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, vocab_size, 11)
    weights, biases, inputs, cotangent = (
        jnp.asarray(2.0 * rng.standard_normal(shape), jnp.float32)
        for shape in ((vocab_size, 6), vocab_size, (11, 6), 11)
    )

    def full(weights, biases, inputs):
        logits = inputs @ weights.T + biases[None, :]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def blocks(weights, biases, inputs):
        options = {"block_size": block_size, "kept_bytes": kept_bytes}
        return exact_losses(inputs, weights, jnp.asarray(labels), biases, vocab_size, **options)

    @partial(jax.jit, static_argnums=0)
    def losses_and_gradients(function):
        losses, pullback = jax.vjp(function, weights, biases, inputs)
        return losses, pullback(cotangent)

    (losses, ours), (expected, theirs) = losses_and_gradients(blocks), losses_and_gradients(full)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    for gradient, correct in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(gradient, correct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept_bytes", [0, KEPT_BYTES])
@pytest.mark.parametrize("block_size", [5, 2048])
def test_bfloat16_operands_are_rounded_once_and_summed_in_float32(block_size, kept_bytes):
    def rounded(x):
        return np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float64)

    rng = np.random.default_rng(4)
    inputs, weights, cotangent = (rng.standard_normal(shape).astype(np.float32) for shape in ((11, 6), (23, 6), 11))
    biases, labels = jnp.asarray(rng.standard_normal(23), jnp.float32), jnp.asarray(rng.integers(0, 23, 11))
    logits = rounded(inputs) @ rounded(weights).T + np.asarray(biases)
    normalizer = np.log(np.exp(logits).sum(axis=1))
    # the logit of the label is no product of matrices, and not rounded
    expected = normalizer - (inputs * weights[labels]).sum(axis=1) - np.asarray(biases[labels])
    # the exponentials are relative to the highest logit up to the end of their block
    ends = np.minimum((np.arange(23) // min(block_size, 12) + 1) * min(block_size, 12), 23) - 1
    highest = np.maximum.accumulate(logits, axis=1)[:, ends]
    mean_rows = (rounded(np.exp(logits - highest)) * np.exp(highest - normalizer[:, None])) @ rounded(weights)
    highest = highest if kept_bytes else np.broadcast_to(normalizer[:, None], logits.shape)
    exponentials = rounded(np.exp(logits - highest))
    scaled = rounded(inputs[:, None] * (cotangent[:, None] * np.exp(highest - normalizer[:, None]))[..., None])
    one_hot = -cotangent[:, None] * np.eye(23)[labels]
    gradients = (
        cotangent[:, None] * mean_rows + one_hot @ weights,
        np.einsum("nv,nvd->vd", exponentials, scaled) + one_hot.T @ inputs,
    )

    @jax.jit
    def losses_and_gradients(inputs, weights):
        def losses(inputs, weights):
            return exact_losses(inputs, weights, labels, biases, 23, (), "bfloat16", block_size, kept_bytes)

        losses, pullback = jax.vjp(losses, inputs, weights)
        return losses, pullback(cotangent)

    losses, found = losses_and_gradients(inputs, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for gradient, correct in zip(found, gradients, strict=True):
        assert np.linalg.norm(gradient - correct) < 2e-4 * np.linalg.norm(correct)  # without rounding, 1e-3


def test_training_alone_holds_full_logits():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def temporary_bytes(function):
        arguments = shape(320, 256), shape(200_000, 256), jax.ShapeDtypeStruct((320,), jnp.int32), shape(200_000)
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    def loss(inputs, weights, labels, biases):
        return linear_cross_entropy(inputs, weights, labels, biases=biases).sum()

    def training_loss(*arguments):
        return exact_losses(*arguments, 200_000).sum()

    logits = 4 * 320 * 200_000
    assert temporary_bytes(loss) < logits / 10
    assert temporary_bytes(jax.grad(loss, argnums=(0, 1, 3))) < logits / 10
    assert temporary_bytes(training_loss) < logits / 10
    assert logits < temporary_bytes(jax.grad(training_loss, argnums=(0, 1, 3))) < 1.1 * logits


def test_leading_dimensions_lists_and_missing_biases():
    rng = np.random.default_rng(3)
    inputs, weights = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((9, 4)).astype(np.float32)
    labels = rng.integers(0, 9, (2, 3))
    expected = optax.softmax_cross_entropy_with_integer_labels(inputs @ weights.T, labels)
    np.testing.assert_allclose(linear_cross_entropy(inputs, weights, labels.tolist()), expected, rtol=1e-5)
    one = linear_cross_entropy(inputs[0, 0], weights, labels[0, 0])
    assert one.shape == ()
    np.testing.assert_allclose(one, expected[0, 0], rtol=1e-5)


@pytest.mark.parametrize("label", [9, -1, 10**6, -(10**6)])
def test_a_label_out_of_range_gives_nan_and_spares_the_others(label):
    inputs, weights, labels = jnp.eye(2, 4), jnp.arange(36.0).reshape(9, 4) / 36, jnp.array([3, label])
    np.testing.assert_array_equal(jnp.isnan(linear_cross_entropy(inputs, weights, labels)), [False, True])

    def masked(loss: Callable) -> list[jax.Array]:  # of the first example alone
        return jax.grad(lambda *tables: jnp.where(labels == 3, loss(*tables), 0.0).sum(), argnums=(0, 1))(
            inputs, weights
        )

    ours = masked(lambda inputs, weights: linear_cross_entropy(inputs, weights, labels))
    optaxs = masked(lambda x, w: optax.softmax_cross_entropy_with_integer_labels(x @ w.T, labels))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), ours, optaxs)


@pytest.mark.parametrize(("dtype", "num_classes"), [("uint8", 256), ("int8", 128), ("uint16", 300)])
def test_the_type_of_the_labels_changes_nothing(dtype, num_classes):
    rng = np.random.default_rng(0)
    inputs, weights = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4), (num_classes, 4)))
    labels = np.array([num_classes - 1, 0, 94])
    for function in (
        jax.grad(lambda w, y: linear_cross_entropy(inputs, w, y, block_size=64).sum()),
        lambda w, y: word_statistics(inputs, w, y, block_size=64),
    ):
        found = [function(weights, jnp.asarray(labels, kind)) for kind in (dtype, "int32")]
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_bfloat16_is_cast_to_float32():
    rng = np.random.default_rng(6)
    inputs, weights, biases = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((5, 4), (9, 4), 9))
    labels = jnp.arange(5)
    found = linear_cross_entropy(inputs, weights, labels, biases=biases)
    inputs, weights, biases = (x.astype(jnp.float32) for x in (inputs, weights, biases))
    expected = optax.softmax_cross_entropy_with_integer_labels(inputs @ weights.T + biases[None], labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"labels": [1]}, "`inputs`: expected shape"),
        ({"labels": [1.0, 2.0]}, "`labels`: expected integer ids"),
        ({"weights": jnp.ones((4, 9))}, "`inputs`: expected shape"),
        ({"weights": jnp.ones(4)}, "`weights`: expected shape"),
        ({"weights": 1.0}, "`weights`: expected shape"),
        ({"weights": jnp.ones((0, 4))}, "`weights`: expected shape"),
        ({"biases": jnp.ones(8)}, "`biases`: expected shape"),
        ({"block_size": 0}, "`block_size`: expected an integer of at least 1"),
    ],
)
def test_wrong_arguments_raise(change, error):
    arguments = {"inputs": jnp.ones((2, 4)), "weights": jnp.ones((9, 4)), "labels": [1, 2]} | change
    with pytest.raises(InputError, match=f"Invalid {error}"):
        linear_cross_entropy(**arguments)
