"""The LSTM layer (Flax NNX) with Keras' weights, a feature-major loop and a hand-written backward pass."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.config import ComputeDtype
from jaxlm.matmul import factor, product, transposed

Carry = tuple[jax.Array, jax.Array]  # (c, h), each [batch, hidden_size]
Saved = tuple[Carry, tuple[jax.Array, jax.Array, jax.Array]]  # last carry; outputs, gates and previous c by time


class LSTM(nnx.Module):
    """One LSTM layer: i, f, g, o = split(x @ kernel + h @ recurrent_kernel + bias).

    c = sigmoid(f) * c + sigmoid(i) * tanh(g); h = sigmoid(o) * tanh(c).

    Args:
      input_size: width of the inputs.
      hidden_size: width of the state and of the outputs.
      use_bias: whether it has a bias.
      rngs: with a `params` stream, for Keras' initializers.

    Attributes:
      kernel: `[input_size, 4 * hidden_size]` float32, Glorot uniform.
      recurrent_kernel: `[hidden_size, 4 * hidden_size]` float32, orthogonal.
      bias: `[4 * hidden_size]` float32, 1 for the forget gate and 0 elsewhere; None without one.

    References:
      `keras.layers.LSTM`; `flax.nnx.OptimizedLSTMCell` (same gate order); Jozefowicz et al. 2015,
      http://proceedings.mlr.press/v37/jozefowicz15.pdf, for the forget bias.
    """

    def __init__(self, input_size: int, hidden_size: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        glorot_uniform, orthogonal = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.orthogonal()
        gates = 4 * hidden_size
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (input_size, gates), jnp.float32))
        self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), (hidden_size, gates), jnp.float32))
        bias = jnp.zeros(gates, jnp.float32).at[hidden_size : 2 * hidden_size].set(1.0)
        self.bias = nnx.Param(bias) if use_bias else None

    def __call__(self, inputs: jax.Array, carry: Carry, dtype: ComputeDtype = "float32") -> tuple[jax.Array, Carry]:
        """Runs the layer over a sequence.

        Args:
          inputs: `[batch, time, input_size]` float32.
          carry: (c, h), each `[batch, hidden_size]` float32.
          dtype: of the factors of the products.

        Returns:
          outputs `[batch, time, hidden_size]`, and the carry after the last time step.
        """
        c, h = carry
        bias = jnp.zeros(self.kernel.shape[1], jnp.float32) if self.bias is None else self.bias[...]
        outputs, (c, h) = lstm(
            inputs.swapaxes(0, 1), self.kernel[...], self.recurrent_kernel[...], bias, (c.T, h.T), dtype
        )
        return outputs.swapaxes(0, 1), (c.T, h.T)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def lstm(
    inputs: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    carry: Carry,
    dtype: ComputeDtype = "float32",
) -> tuple[jax.Array, Carry]:
    """Runs an LSTM over time-major inputs with a feature-major state.

    Feature-major because kernel.T [4H, E+H] @ state [E+H, batch] runs at the speed of the machine, while
    state @ kernel, a product with few rows, runs at a half to a quarter of it.

    Args:
      inputs: `[time, batch, input_size]` float32.
      kernel: `[input_size, 4 * hidden_size]` float32, gates in the order i, f, g, o.
      recurrent_kernel: `[hidden_size, 4 * hidden_size]` float32.
      bias: `[4 * hidden_size]` float32.
      carry: (c, h), each `[hidden_size, batch]` float32.
      dtype: of the factors of the products; states, gates and sums stay float32.

    Returns:
      outputs `[time, batch, hidden_size]`, and the carry after the last time step.
    """
    return _forward(inputs, kernel, recurrent_kernel, bias, carry, dtype)[0]


def _forward(
    inputs: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    carry: Carry,
    dtype: ComputeDtype,
) -> tuple[tuple[jax.Array, Carry], tuple]:
    def one_step() -> Saved:
        # as in generation: it does not repay the transposition of the kernels
        return scan(lambda x, h: (x @ kernel + h.T @ recurrent_kernel).T, inputs)

    def product_for_each_step() -> Saved:
        # on a processor: a step finds its inputs in the cache
        kernel_t, recurrent_t = factor(transposed(kernel), dtype), factor(transposed(recurrent_kernel), dtype)
        inputs_t = factor(inputs.swapaxes(1, 2), dtype)  # [time, E, batch]
        return scan(lambda x, h: product(kernel_t, x) + product(recurrent_t, h.astype(x.dtype)), inputs_t)

    def product_for_all_steps() -> Saved:
        # on an accelerator: the input products of all steps are one large product, and a step has half as many
        recurrent_t = factor(transposed(recurrent_kernel), dtype)
        z = product(factor(inputs.reshape(-1, inputs.shape[-1]), dtype), factor(kernel, dtype))  # [time * batch, 4H]
        z = z.reshape(*inputs.shape[:2], -1)
        return scan(lambda x, h: x.T + product(recurrent_t, h.astype(recurrent_t.dtype)), z)

    def scan(gates_of: Callable[[jax.Array, jax.Array], jax.Array], xs: jax.Array) -> Saved:
        return jax.lax.scan(partial(step, gates_of), carry, xs)

    def step(gates_of: Callable, carry: Carry, x: jax.Array) -> tuple[Carry, tuple[jax.Array, jax.Array, jax.Array]]:
        c, h = carry
        z = gates_of(x, h) + bias[:, None]  # [4H, batch]
        i, f, g, o = jnp.split(z, 4)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        return (new_c, new_h), (new_h.T, jnp.concatenate([i, f, g, o]), c)

    if inputs.shape[0] == 1:
        last, (outputs, gates, previous_c) = one_step()
    else:
        last, (outputs, gates, previous_c) = jax.lax.platform_dependent(
            cpu=product_for_each_step, default=product_for_all_steps
        )
    return (outputs, last), (inputs, kernel, recurrent_kernel, carry, outputs, gates, previous_c)


def _backward(dtype: ComputeDtype, residuals: tuple, cotangents: tuple[jax.Array, Carry]) -> tuple:
    inputs, kernel, recurrent_kernel, (_, first_h), outputs, gates, previous_c = residuals
    d_outputs, d_last = cotangents
    recurrent_factor = factor(recurrent_kernel, dtype)

    def step(d_carry: Carry, saved: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
        d_c, d_h = d_carry
        d_output, gate, c = saved
        i, f, g, o = jnp.split(gate, 4)
        tanh_c = jnp.tanh(f * c + i * g)
        d_h += d_output.T
        d_c += d_h * o * (1.0 - tanh_c * tanh_c)
        d_z = jnp.concatenate(
            [d_c * g * i * (1.0 - i), d_c * c * f * (1.0 - f), d_c * i * (1.0 - g * g), d_h * tanh_c * o * (1.0 - o)]
        ).astype(recurrent_factor.dtype)  # [4H, batch]
        return (d_c * f, product(recurrent_factor, d_z)), d_z.T

    d_first, d_z = jax.lax.scan(step, d_last, (d_outputs, gates, previous_c), reverse=True)
    # the gradient of each kernel is one product over all time steps, outside the loop
    d_z = factor(d_z.reshape(-1, d_z.shape[-1]), dtype)  # [time * batch, 4H]
    previous_h = jnp.concatenate([first_h.T[None], outputs[:-1]])
    d_kernel, d_recurrent_kernel = (
        product(factor(transposed(x.reshape(-1, x.shape[-1])), dtype), d_z) for x in (inputs, previous_h)
    )
    d_inputs = product(d_z, factor(transposed(kernel), dtype)).reshape(inputs.shape)
    return d_inputs, d_kernel, d_recurrent_kernel, d_z.sum(axis=0, dtype=kernel.dtype), d_first


lstm.defvjp(_forward, _backward)
