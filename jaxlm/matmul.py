"""Matrix products of training: operands of one data type, float32 sums."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config import ComputeDtype


def dot_f32(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[M, K]` @ `[K, N]` with float32 sums."""
    return jax.lax.dot(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def cast_operand(x: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """Casts an operand of `dot_f32`. The barrier keeps XLA from fusing the cast into the product."""
    return jax.lax.optimization_barrier(x if dtype == "float32" else x.astype(dtype))


def transposed(x: jax.Array) -> jax.Array:
    """Returns the transpose of a matrix, to be cast by `cast_operand`.

    XLA:CPU folds a transposition into the product that reads it, which is then slower, and in float32 whatever the
    factors are. It does not fold one of three dimensions, so one dimension is split in two.
    """
    rows, columns = x.shape
    if columns % 2:
        return transposed(jnp.pad(x, ((0, 0), (0, 1))))[:-1]
    return x.reshape(rows, 2, columns // 2).transpose(1, 2, 0).reshape(columns, rows)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(a: jax.Array, b: jax.Array, dtype: ComputeDtype = "float32") -> jax.Array:
    """Returns `[M, K]` @ `[K, N]`, float32, such that this product and those of its gradient are fast.

    Args:
      a: `[M, K]` float32.
      b: `[K, N]` float32.
      dtype: data type of the operands.

    >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4)), "bfloat16").dtype
    dtype('float32')
    """
    return dot_f32(cast_operand(a, dtype), cast_operand(b, dtype))


def _forward(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(a, b, dtype), (a, b)


def _backward(
    dtype: ComputeDtype, operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a_t, b_t = (cast_operand(transposed(x), dtype) for x in operands)
    cotangent = cast_operand(cotangent, dtype)
    return dot_f32(cotangent, b_t), dot_f32(a_t, cotangent)


matmul.defvjp(_forward, _backward)


def product_dtype(dtype: ComputeDtype, time: int) -> ComputeDtype:
    """Returns the data type of operands for words `[batch_size, time]`.

    Float32 for a single time step: XLA sees no loop there, and chooses layouts for which XLA:CPU has no bfloat16
    products.
    """
    return "float32" if time == 1 else dtype


def product_precision(dtype: ComputeDtype) -> AbstractContextManager:
    """Returns a context in which the products of float32 arrays have operands of a data type.

    Without it, JAX rounds them on a GPU (to TensorFloat32) and on a TPU (to bfloat16). The user's own
    `jax_default_matmul_precision` takes precedence over float32.
    """
    if dtype == "bfloat16" and _has_bfloat16_accelerator():  # a processor has no such products of some sizes
        return jax.default_matmul_precision("BF16_BF16_F32")
    is_set = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return nullcontext() if is_set else jax.default_matmul_precision("float32")


def in_float32(function: Callable) -> Callable:
    """Decorates a function to compute its products with float32 operands."""

    @wraps(function)
    def wrapped(*arguments: Any) -> Any:
        with product_precision("float32"):
            return function(*arguments)

    return wrapped


def fast_dtype() -> ComputeDtype:
    """Returns the data type whose products are fastest on this machine's default device.

    "bfloat16" on a TPU and on a GPU (of NVIDIA from Ampere on), and on a processor with bfloat16 instructions, AMX or
    AVX512_BF16.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16" if _has_bfloat16_accelerator() else "float32"
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def _has_bfloat16_accelerator() -> bool:
    """Returns whether JAX uses accelerators with bfloat16 products, those of other processes included.

    NVIDIA's GPUs have them from compute capability 8.0 on; XLA refuses "BF16_BF16_F32" on older ones, such as the T4.
    """
    capabilities = [getattr(device, "compute_capability", "") for device in jax.devices()]  # AMD: "gfx90a"
    majors = [capability.partition(".")[0] for capability in capabilities]
    return jax.default_backend() != "cpu" and all(not major.isdigit() or int(major) >= 8 for major in majors)
