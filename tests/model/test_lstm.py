"""The LSTM layer against Flax's OptimizedLSTMCell and Keras' LSTM: outputs, states and all gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxlm.model.lstm import LSTM


def make(batch, time, input_size, hidden_size):
    rng = np.random.default_rng(batch * time)

    def normal(*shape):
        return jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)

    layer = LSTM(input_size, hidden_size, rngs=nnx.Rngs(0))
    layer.bias[...] += normal(4 * hidden_size)
    carry = (normal(batch, hidden_size), normal(batch, hidden_size))
    return layer, normal(batch, time, input_size), carry, normal(batch, time, hidden_size), carry[::-1]


def flax_lstm(params, inputs, carry):
    """Flax's own cell, scanned by hand; its two Linears are split into a Dense a gate."""
    kernels = {}
    for gate, name in enumerate("ifgo"):
        part = slice(gate * carry[0].shape[1], (gate + 1) * carry[0].shape[1])
        kernels["i" + name] = {"kernel": params["kernel"][:, part]}
        kernels["h" + name] = {"kernel": params["recurrent_kernel"][:, part], "bias": params["bias"][part]}
    cell = linen.OptimizedLSTMCell(carry[0].shape[1])

    def step(carry, x):
        with jax.numpy_rank_promotion("allow"):  # Flax's own code relies on it
            return cell.apply({"params": kernels}, carry, x)

    carry, outputs = jax.lax.scan(step, carry, inputs.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), carry


@pytest.mark.parametrize(("batch", "time", "input_size", "hidden_size"), [(1, 1, 1, 1), (3, 7, 5, 4), (2, 13, 8, 17)])
def test_outputs_states_and_gradients_are_those_of_flax(batch, time, input_size, hidden_size, branch):
    layer, inputs, carry, d_outputs, d_carry = make(batch, time, input_size, hidden_size)
    graphdef, params = nnx.split(layer)
    params = nnx.to_pure_dict(params)

    def ours(params, inputs, carry):
        return nnx.merge(graphdef, params)(inputs, carry)

    @partial(jax.jit, static_argnums=0)
    def results_and_gradients(function):
        results, pullback = jax.vjp(function, params, inputs, carry)
        return results, pullback((d_outputs, d_carry))

    (results, gradients), (expected, correct) = results_and_gradients(ours), results_and_gradients(flax_lstm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), results, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), gradients, correct)


def test_outputs_and_states_are_those_of_keras():
    keras = pytest.importorskip("keras")
    layer, inputs, (c, h), _, _ = make(3, 11, 6, 9)
    theirs = keras.layers.LSTM(9, return_sequences=True, return_state=True)
    theirs.build((None, None, 6))
    theirs.set_weights([np.asarray(layer.kernel), np.asarray(layer.recurrent_kernel), np.asarray(layer.bias)])
    outputs, keras_h, keras_c = theirs(np.asarray(inputs), initial_state=[np.asarray(h), np.asarray(c)])
    ours, (our_c, our_h) = layer(inputs, (c, h))
    for a, b in ((ours, outputs), (our_h, keras_h), (our_c, keras_c)):
        np.testing.assert_allclose(a, keras.ops.convert_to_numpy(b), rtol=1e-5, atol=1e-6)


def test_begins_as_keras_does():
    keras = pytest.importorskip("keras")
    layer = LSTM(30, 20, rngs=nnx.Rngs(3))
    keras_layer = keras.layers.LSTM(20)
    keras_layer.build((None, None, 30))
    kernel, recurrent_kernel, bias = keras_layer.get_weights()
    np.testing.assert_array_equal(layer.bias[...], bias)  # the forget gate's is 1
    np.testing.assert_allclose(layer.kernel[...].std(), kernel.std(), rtol=0.05)
    assert layer.kernel.shape == kernel.shape
    product = layer.recurrent_kernel[...] @ layer.recurrent_kernel[...].T
    np.testing.assert_allclose(product, recurrent_kernel @ recurrent_kernel.T, atol=1e-5)


@pytest.mark.parametrize("batch", [17, 20, 50])
def test_streams_do_not_depend_on_the_others_whatever_their_number(batch):
    """In bfloat16, whose products with some numbers of streams have columns that are filled up."""
    layer, inputs, carry, d_outputs, d_carry = make(64, 3, 5, 4)

    @jax.jit
    def results_and_gradients(inputs, carry, d_outputs, d_carry):
        results, pullback = jax.vjp(lambda inputs, carry: layer(inputs, carry, "bfloat16"), inputs, carry)
        return results, pullback((d_outputs, d_carry))

    arguments = inputs, carry, d_outputs, d_carry
    found = results_and_gradients(*jax.tree.map(lambda x: x[:batch], arguments))
    expected = jax.tree.map(lambda x: x[:batch], results_and_gradients(*arguments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
