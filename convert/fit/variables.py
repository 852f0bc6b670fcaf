"""Values of Keras' variables as JAX arrays, and back, with as few copies as a backend allows."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from convert.keras_models.live_layers import as_array

transpose = jax.jit(jnp.transpose)


class LiveVariables:
    """Reads and writes variables of Keras, and detects changes by others in between."""

    def __init__(self) -> None:
        self.versions: dict[int, Any] = {}  # of each variable when it was last read or written

    def has_changed(self, variable: Any) -> bool:
        """Whether a variable has another value than when it was last read or written, without comparing numbers."""
        before, now = self.versions.get(id(variable)), _version(variable)
        if isinstance(before, np.ndarray) and isinstance(now, np.ndarray):
            return before.ctypes.data != now.ctypes.data
        return before != now if isinstance(before, tuple) else before is not now

    def mark(self, variable: Any) -> None:
        """Records the current value of a variable as read."""
        self.versions[id(variable)] = _version(variable)

    def read(self, variable: Any, transposed: bool) -> jax.Array:
        """Returns a copy of a variable's value: a step donates it, and Keras keeps its own."""
        self.mark(variable)
        value = _held(variable)
        array = (
            value if isinstance(value, jax.Array) else _memory(value) if _is_tensorflow(value) else as_array(variable)
        )
        return transpose(array) if transposed else jnp.array(array, copy=True)

    def write(self, variable: Any, array: jax.Array, transposed: bool, last: bool) -> None:
        """Assigns an array to a variable.

        Args:
          variable: of Keras.
          array: its value.
          transposed: whether the variable holds the transposed array.
          last: False if a step follows: Keras gets copies, since the step overwrites its arrays.
        """
        on_jax = isinstance(variable, keras.Variable) and keras.backend.backend() == "jax"
        shared = _is_tensorflow(_held(variable)) and _is_shared(_held(variable))
        if transposed:
            array = transpose(array)
        elif not last and (on_jax or shared):
            array = jnp.array(array, copy=True)
        if shared:
            capsule = jax.block_until_ready(array).__dlpack__()
            variable.assign(sys.modules["tensorflow"].experimental.dlpack.from_dlpack(capsule))
        else:
            variable.assign(array if on_jax else np.asarray(array))
        self.mark(variable)


def _version(variable: Any) -> Any:
    """Returns an object that differs for each value of a variable."""
    value = _held(variable)
    if _is_tensorflow(value):  # a variable that is assigned anew has other memory while this is kept
        return _memory(value)
    if hasattr(value, "_version"):  # PyTorch, which assigns in place
        return value.data_ptr(), value._version
    return value


def _held(variable: Any) -> Any:
    """Returns the array, tensor or TensorFlow variable that a variable of Keras holds."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value  # tf_keras


def _is_tensorflow(value: Any) -> bool:
    return hasattr(value, "read_value")


def _is_shared(value: Any) -> bool:
    """Whether a variable of TensorFlow can hold the memory of a JAX array."""
    return jax.default_backend() == "cpu" and value.dtype.name == "float32" and "CPU" in value.read_value().device


def _memory(value: Any) -> np.ndarray:
    """Returns the value of a variable of TensorFlow without copying it."""
    return np.asarray(memoryview(value.read_value()))
