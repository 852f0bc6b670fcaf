"""`KerasBody`: the part of a Keras model between its embeddings and its last layer, as a `Body` of jaxlm."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from jaxlm.training.body import BodyOutputs

FLOAT16_SCALE = 1024.0  # of gradients inside a float16 body, which would underflow


@dataclass(frozen=True)
class KerasBody:
    """The body of a Keras model, called by `stateless_call`.

    `dense` and `other` are its trainable and its other variables, `features` its other inputs and then the masks.

    Attributes:
      model: from the rows of the lookups, and other inputs, to the inputs of the head.
      num_lookups: how many of its inputs are rows.
      masked: the lookups with a mask.
      trained: which variables are trained, so that a body with other frozen layers compiles anew.
    """

    model: Any
    num_lookups: int
    masked: tuple[int, ...]
    trained: tuple[bool, ...]

    def __call__(
        self, dense: Any, other: Any, rows: tuple[jax.Array, ...], features: Any, carry: Any, key: jax.Array | None
    ) -> BodyOutputs:
        """Returns the inputs of the head in float32, as a `Body`."""
        outputs, other, losses = self.call(dense, other, rows, features, key is not None)
        return BodyOutputs(outputs.astype(jnp.float32), carry, other, sum(losses, start=jnp.float32(0.0)))

    def call(
        self, dense: Any, other: Any, rows: Sequence[jax.Array], features: Sequence[Any], training: bool
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """Returns the outputs of Keras, its other variables afterwards, and its losses."""
        count = len(features) - len(self.masked)
        masks: list[Any] = [None] * (self.num_lookups + count)
        for index, mask in zip(self.masked, features[count:], strict=True):
            masks[index] = mask
        inputs = [*rows, *features[:count]]
        float16 = training and any(tensor.dtype == "float16" for tensor in self.model.inputs)
        if float16:
            dense, inputs = _scale_gradient((dense, inputs), 1.0 / FLOAT16_SCALE)
        settings = {"training": training, "mask": masks} if self.masked else {"training": training}
        outputs, other, losses = self.model.stateless_call(dense, other, inputs, return_losses=True, **settings)
        if float16:
            outputs = _scale_gradient(outputs, FLOAT16_SCALE)
        return outputs, other, losses


def _scale_gradient(tree: Any, scale: float) -> Any:
    """Returns the same arrays, whose gradients are multiplied by a number."""

    @jax.custom_vjp
    def scaled(leaf: jax.Array) -> jax.Array:
        return leaf

    scaled.defvjp(lambda leaf: (leaf, None), lambda _, gradient: (gradient * scale,))
    return jax.tree.map(lambda leaf: scaled(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


@partial(jax.jit, static_argnums=(0, 1))
def output_mask(body: KerasBody, widths: tuple[int, ...], ids: Sequence[jax.Array], features: Any) -> Any:
    """Computes only the mask of the outputs; XLA leaves out the rest of the body."""

    def zeros(variables: Sequence[Any]) -> list[jax.Array]:
        return [jnp.zeros(variable.shape, variable.dtype) for variable in variables]

    rows = [jnp.zeros((*each.shape, width), jnp.float32) for each, width in zip(ids, widths, strict=True)]
    variables = zeros(body.model.trainable_variables), zeros(body.model.non_trainable_variables)
    return keras.src.backend.get_keras_mask(body.call(*variables, rows, features, False)[0])
