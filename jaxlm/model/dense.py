"""`Dense`: a fully connected layer of the model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.config import ComputeDtype, DenseConfig
from jaxlm.matmul import matmul
from jaxlm.model.initializers import glorot_uniform

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda outputs: outputs,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


class Dense(nnx.Module):
    """One Dense layer: activation(x @ kernel + bias).

    Args:
      input_size: width of the inputs.
      config: width, activation and use of a bias.
      rngs: with a `params` stream.

    Attributes:
      kernel: `[input_size, size]` float32, Glorot uniform.
      bias: `[size]` float32, zeros; None without one.

    References:
      `keras.layers.Dense`.
    """

    def __init__(self, input_size: int, config: DenseConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.kernel = nnx.Param(glorot_uniform(rngs, (input_size, config.size)))
        self.bias = nnx.Param(jnp.zeros(config.size, jnp.float32)) if config.use_bias else None

    def __call__(self, inputs: jax.Array, dtype: ComputeDtype = "float32") -> jax.Array:
        """Returns outputs `[batch, time, size]` of inputs `[batch, time, input_size]`."""
        outputs = matmul(inputs.reshape(-1, inputs.shape[-1]), self.kernel[...], dtype)
        outputs = outputs.reshape(*inputs.shape[:-1], -1)
        if self.bias is not None:
            outputs += self.bias[...].reshape((1,) * (outputs.ndim - 1) + (-1,))
        return ACTIVATIONS[self.activation](outputs)
