"""The LSTM layer (Flax NNX) with Keras' weights and a hand-written backward pass.

The state of a processor is feature-major: kernel.T [4H, E+H] @ state [E+H, batch] runs at the speed of the machine,
while state @ kernel, a product with few rows, runs at a half to a quarter of it. An accelerator's is row-major.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.config import ComputeDtype
from jaxlm.matmul import cast_operand, dot_f32, product_dtype, transposed
from jaxlm.model.initializers import glorot_uniform

Carry = tuple[jax.Array, jax.Array]  # (c, h), each [batch, hidden_size]
FEATURE_MAJOR, ROW_MAJOR = 0, 1  # the axis of the features in [H, batch] and in [batch, H]
CPU_UNROLL, ACCELERATOR_UNROLL = 1, 5  # time steps in a body of the loop: fewer, larger kernels on an accelerator


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
        gates, orthogonal = 4 * hidden_size, jax.nn.initializers.orthogonal()
        self.kernel = nnx.Param(glorot_uniform(rngs, (input_size, gates)))
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
        # zeros_like, since the gradient varies along the axes of a mesh as the kernel does
        bias = jnp.zeros_like(self.kernel[...][0]) if self.bias is None else self.bias[...]
        outputs, carry = lstm(inputs.swapaxes(0, 1), self.kernel[...], self.recurrent_kernel[...], bias, carry, dtype)
        return outputs.swapaxes(0, 1), carry


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def lstm(
    inputs: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    carry: Carry,
    dtype: ComputeDtype = "float32",
) -> tuple[jax.Array, Carry]:
    """Runs an LSTM over time-major inputs.

    Args:
      inputs: `[time, batch, input_size]` float32.
      kernel: `[input_size, 4 * hidden_size]` float32, gates in the order i, f, g, o.
      recurrent_kernel: `[hidden_size, 4 * hidden_size]` float32.
      bias: `[4 * hidden_size]` float32.
      carry: (c, h), each `[batch, hidden_size]` float32.
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
    time, batch, input_size = inputs.shape
    dtype = product_dtype(dtype, time)

    def feature_major() -> tuple[jax.Array, ...]:  # one product in a step, of inputs and state
        kernels = [_to_bits(cast_operand(transposed(x), dtype)) for x in (kernel, recurrent_kernel)]
        kernels_t = _from_bits(jnp.concatenate(kernels, axis=1), dtype)  # [4H, E + H]
        inputs_t = cast_operand(inputs.swapaxes(1, 2), dtype)  # [time, E, batch]

        def gates_of(x: jax.Array, h: jax.Array) -> jax.Array:
            return _dot_columns(kernels_t, jnp.concatenate([x, h.astype(x.dtype)])) + bias[:, None]

        return _scan_forward(gates_of, inputs_t, carry, FEATURE_MAJOR)

    def row_major() -> tuple[jax.Array, ...]:  # the input products of all steps are one large product
        recurrent = cast_operand(recurrent_kernel, dtype)
        z = dot_f32(cast_operand(inputs.reshape(-1, input_size), dtype), cast_operand(kernel, dtype)) + bias[None]
        z = z.reshape(time, batch, -1)
        return _scan_forward(lambda x, h: x + dot_f32(h.astype(recurrent.dtype), recurrent), z, carry, ROW_MAJOR)

    outputs, gates, previous_c, last_c = _on_platform(time, feature_major, row_major)
    return (outputs, (last_c, outputs[-1])), (inputs, kernel, recurrent_kernel, carry[1], outputs, gates, previous_c)


def _scan_forward(
    gates_of: Callable[[jax.Array, jax.Array], jax.Array], xs: jax.Array, carry: Carry, axis: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns by time outputs `[time, batch, H]`, gates and previous c for `_scan_backward`; and the last c."""

    def step(carry: Carry, x: jax.Array) -> tuple[Carry, tuple[jax.Array, jax.Array, jax.Array]]:
        c, h = carry
        i, f, g, o = jnp.split(gates_of(x, h), 4, axis)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        return (new_c, new_h), (new_h, jnp.concatenate([i, f, g, o], axis), c)

    start = (_swap_if_feature_major(carry[0], axis), _swap_if_feature_major(carry[1], axis))
    (last_c, _), (outputs, gates, c) = jax.lax.scan(step, start, xs, unroll=_unroll(axis))
    return _swap_if_feature_major(outputs, axis), _flattened(gates), _flattened(c), _swap_if_feature_major(last_c, axis)


def _backward(dtype: ComputeDtype, residuals: tuple, cotangents: tuple[jax.Array, Carry]) -> tuple:
    inputs, kernel, recurrent_kernel, first_h, outputs, gates, previous_c = residuals
    saved = (gates, previous_c, *cotangents)
    dtype = product_dtype(dtype, len(inputs))
    recurrent = cast_operand(recurrent_kernel, dtype)

    def feature_major() -> tuple[jax.Array, Carry]:
        return _scan_backward(lambda d_z: _dot_columns(recurrent, d_z), *saved, recurrent.dtype, FEATURE_MAJOR)

    def row_major() -> tuple[jax.Array, Carry]:
        return _scan_backward(lambda d_z: dot_f32(d_z, recurrent.T), *saved, recurrent.dtype, ROW_MAJOR)

    d_z, d_first = _on_platform(len(inputs), feature_major, row_major)
    # the gradient of each kernel is one product over all time steps, outside the loop
    d_z = cast_operand(d_z.reshape(-1, d_z.shape[-1]), dtype)  # [time * batch, 4H]
    previous_h = jnp.concatenate([first_h[None], outputs[:-1]])
    d_kernel, d_recurrent_kernel = (dot_f32(_by_feature(x, dtype), d_z) for x in (inputs, previous_h))
    d_inputs = dot_f32(d_z, cast_operand(transposed(kernel), dtype)).reshape(inputs.shape)
    return d_inputs, d_kernel, d_recurrent_kernel, d_z.sum(axis=0, dtype=kernel.dtype), d_first


def _scan_backward(
    d_h_of: Callable[[jax.Array], jax.Array],
    gates: jax.Array,
    previous_c: jax.Array,
    d_outputs: jax.Array,
    d_last: Carry,
    dtype: jnp.dtype,
    axis: int,
) -> tuple[jax.Array, Carry]:
    """Returns the gradients of the gates before their nonlinearities, `[time, batch, 4H]`, and of the first carry."""
    batch = d_outputs.shape[1]

    def step(d_carry: Carry, saved: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
        d_c, d_h = d_carry
        d_output, gate, c = saved
        i, f, g, o = jnp.split(gate, 4, axis)
        tanh_c = jnp.tanh(f * c + i * g)
        d_h += d_output
        d_c += d_h * o * (1 - tanh_c * tanh_c)
        d_gates = [d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g * g), d_h * tanh_c * o * (1 - o)]
        d_z = jax.lax.optimization_barrier(jnp.concatenate(d_gates, axis).astype(dtype))
        return (d_c * f, d_h_of(d_z)), _to_bits(d_z)

    by_time = (
        _swap_if_feature_major(d_outputs, axis),
        _unflattened(gates, batch, axis),
        _unflattened(previous_c, batch, axis),
    )
    start = (_swap_if_feature_major(d_last[0], axis), _swap_if_feature_major(d_last[1], axis))
    (d_c, d_h), d_z = jax.lax.scan(step, start, by_time, reverse=True, unroll=_unroll(axis))
    d_z = _from_bits(_swap_if_feature_major(d_z, axis), dtype)
    return d_z, (_swap_if_feature_major(d_c, axis), _swap_if_feature_major(d_h, axis))


def _on_platform(time: int, feature_major: Callable[[], Any], row_major: Callable[[], Any]) -> Any:
    """Runs a loop in the layout of the platform. A single time step is faster without transposing the kernels."""
    return jax.lax.platform_dependent(cpu=feature_major, default=row_major) if time > 1 else row_major()


def _dot_columns(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a @ b` for `b` `[K, batch]`, filled up to a multiple of 16 columns where XLA:CPU is faster with them."""
    batch = b.shape[1]
    missing = -batch % 16 if b.dtype == jnp.bfloat16 and 16 < batch < 64 else 0
    return dot_f32(a, jnp.pad(b, ((0, 0), (0, missing))))[:, :batch]


def _unroll(axis: int) -> int:
    return CPU_UNROLL if axis == FEATURE_MAJOR else ACCELERATOR_UNROLL


def _swap_if_feature_major(x: jax.Array, axis: int) -> jax.Array:
    """Returns `[..., H, batch]` for `[..., batch, H]`, or the other way around, if the state is feature-major.

    For all time steps at once, outside the loops: a single core writes what a loop stores.
    """
    return x.swapaxes(-1, -2) if axis == FEATURE_MAJOR else x


def _by_feature(x: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """Returns `[features, time * batch]` for `[time, batch, features]`.

    One transposition of three dimensions, which copies whole rows of a feature-major state.
    """
    return cast_operand(x.transpose(2, 0, 1).reshape(x.shape[2], -1), dtype)


def _to_bits(x: jax.Array) -> jax.Array:
    """Returns bfloat16 as integers of the same bits: jax 0.10 stores and joins bfloat16 values one at a time."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x


def _flattened(x: jax.Array) -> jax.Array:
    """Returns `[time, N]`: a branch of `platform_dependent` has the shapes of the others, whatever its layout."""
    return x.reshape(len(x), -1)


def _unflattened(x: jax.Array, batch: int, axis: int) -> jax.Array:
    return x.reshape(len(x), -1, batch) if axis == FEATURE_MAJOR else x.reshape(len(x), batch, -1)


lstm.defvjp(_forward, _backward)
