"""Sampled softmax against TensorFlow with the same candidates; exact softmax against the full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.losses import sampled_softmax_loss, softmax_loss
from jaxlm.sampling import SampledValues


def problem(seed, vocab_size, width, batch, num_true, num_sampled, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    labels = rng.integers(0, vocab_size, (batch, num_true)).astype(np.int32)
    values = SampledValues(  # any candidates and expected counts will do: both sides are given them
        jnp.asarray(rng.choice(vocab_size, num_sampled, replace=False), jnp.int32),
        jnp.asarray(rng.uniform(0.01, 1, (batch, num_true)), jnp.float32),
        jnp.asarray(rng.uniform(0.01, 1, num_sampled), jnp.float32),
    )
    return normal(vocab_size, width), normal(vocab_size), labels, normal(batch, width), values


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    vocab_size=st.integers(1, 60),
    width=st.integers(1, 9),
    batch=st.integers(1, 7),
    num_true=st.integers(1, 3),
    part=st.floats(0, 1),
    remove=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sampled_softmax_is_tensorflows(vocab_size, width, batch, num_true, part, remove, seed):
    num_sampled = max(1, round(part * vocab_size))  # at S = V every label is an accidental hit
    weights, biases, labels, inputs, values = problem(seed, vocab_size, width, batch, num_true, num_sampled)
    cotangent = np.random.default_rng(seed).standard_normal(batch).astype(np.float32)

    def ours(weights, biases, inputs):
        return sampled_softmax_loss(weights, biases, labels, inputs, num_sampled, vocab_size, num_true, values, remove)

    @jax.jit
    def run():
        losses, pullback = jax.vjp(ours, weights, biases, inputs)
        return losses, pullback(cotangent)

    losses, gradients = run()
    variables = [tf.Variable(x) for x in (weights, biases, inputs)]
    with tf.GradientTape() as tape:
        theirs = tf.nn.sampled_softmax_loss(
            variables[0],
            variables[1],
            tf.constant(labels, tf.int64),
            variables[2],
            num_sampled,
            vocab_size,
            num_true,
            sampled_values=(
                tf.constant(np.asarray(values[0]), tf.int64),
                tf.constant(np.asarray(values[1])),
                tf.constant(np.asarray(values[2])),
            ),
            remove_accidental_hits=remove,
        )
    np.testing.assert_allclose(losses, theirs.numpy(), rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, tape.gradient(theirs, variables, cotangent), strict=True):
        expected = tf.convert_to_tensor(expected).numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_candidate_a_hit_gives_finite_loss_and_gradient():
    weights, biases, _, inputs, values = problem(0, 1, 4, 3, 1, 1, scale=100.0)
    labels = np.zeros((3, 1), np.int32)
    loss, gradient = jax.value_and_grad(
        lambda w: sampled_softmax_loss(w, biases, labels, inputs, 1, 1, 1, values).sum()
    )(weights)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_huge_logits_stay_finite():
    weights, biases, labels, inputs, values = problem(1, 50, 6, 5, 1, 20, scale=100.0)
    loss, gradient = jax.value_and_grad(
        lambda x: sampled_softmax_loss(weights, biases, labels, x, 20, 50, 1, values).sum()
    )(inputs)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_uniform_logits_have_the_known_sampled_and_exact_loss():
    size = 200_000
    labels = np.arange(0, size, 977, dtype=np.int32)[:, None]
    inputs = jnp.zeros((labels.size, 2))
    weights, biases = jnp.zeros((size, 2)), jnp.zeros(size)
    np.testing.assert_allclose(softmax_loss(weights, biases, labels[:, 0], inputs), np.log(size), rtol=1e-6)
    sampled = sampled_softmax_loss(weights, biases, labels, inputs, 1000, size, key=jax.random.key(0))
    assert sampled.mean() < np.log(size) - 1  # why a training loss is never shown as a perplexity


@pytest.mark.parametrize(("vocab_size", "block_size"), [(1, 4), (7, 7), (23, 5), (20, 5), (23, 100)])
def test_exact_loss_and_gradients_are_those_of_full_logits(vocab_size, block_size):
    weights, biases, labels, inputs, _ = problem(2, vocab_size, 6, 11, 1, 1, scale=2.0)
    labels = labels[:, 0]
    cotangent = jnp.asarray(np.random.default_rng(0).standard_normal(11), jnp.float32)

    def full(weights, biases, inputs):
        logits = inputs @ weights.T + biases[None, :]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    expected, pullback = jax.vjp(full, weights, biases, inputs)
    losses, ours = jax.vjp(lambda w, b, x: softmax_loss(w, b, labels, x, block_size), weights, biases, inputs)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    for gradient, correct in zip(ours(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(gradient, correct, rtol=1e-4, atol=1e-5)


def test_exact_loss_holds_no_full_logits():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    labels = jax.ShapeDtypeStruct((320,), jnp.int32)
    compiled = jax.jit(softmax_loss).lower(shape(200_000, 256), shape(200_000), labels, shape(320, 256)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6  # the logits would be 256 MB


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": np.zeros((5,), int)}, "labels"),
        ({"labels": np.zeros((5, 2), int)}, "labels"),
        ({"weights": np.zeros((6, 50), np.float32)}, "weights"),
        ({"biases": np.zeros(49, np.float32)}, "biases"),
        ({"key": None}, "key"),
    ],
)
def test_wrong_arguments_raise(change, word):
    weights, biases, labels, inputs, _ = problem(1, 50, 6, 5, 1, 20)
    arguments = dict(weights=weights, biases=biases, labels=labels, inputs=inputs, key=jax.random.key(0)) | change
    with pytest.raises(ValueError, match=word):
        sampled_softmax_loss(**arguments, num_sampled=20, num_classes=50)
