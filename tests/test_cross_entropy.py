"""The exact loss against the full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


@pytest.mark.parametrize(("vocab_size", "block_size"), [(1, 4), (7, 7), (23, 5), (20, 5), (23, 100)])
def test_exact_loss_and_gradients_are_those_of_full_logits(vocab_size, block_size):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, vocab_size, 11)
    weights, biases, inputs, cotangent = (
        jnp.asarray(2.0 * rng.standard_normal(shape), jnp.float32)
        for shape in ((vocab_size, 6), vocab_size, (11, 6), 11)
    )

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
