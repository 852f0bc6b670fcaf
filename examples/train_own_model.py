"""Trains a Flax NNX module of your own with sampled softmax: the next word of a text from the three before.

python examples/train_own_model.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxlm

VOCAB_SIZE, WIDTH, CONTEXT, BATCH_SIZE = 20_000, 64, 3, 128


class Mixer(nnx.Module):
    """A layer over the rows of the context."""

    def __init__(self, rngs: nnx.Rngs):
        self.mix = nnx.Linear(CONTEXT * WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, rows: jax.Array) -> jax.Array:  # [batch, CONTEXT, WIDTH]
        return self.norm(jnp.tanh(self.mix(rows.reshape(len(rows), -1))))


graph, params = nnx.split(Mixer(nnx.Rngs(0)), nnx.Param)


def body(dense, other, rows, features, carry, key):
    """The function between the looked-up rows and the inputs of the softmax."""
    return jaxlm.BodyOutputs(nnx.merge(graph, dense)(*rows), carry, other)


uniform, keys = nnx.initializers.glorot_uniform(), jax.random.split(jax.random.key(0))
tables = {name: uniform(key, (VOCAB_SIZE, WIDTH)) for name, key in zip(("embedding", "weights"), keys, strict=True)}
tables["biases"] = jnp.zeros(VOCAB_SIZE)
tx = optax.adam(optax.linear_schedule(1e-2, 0.0, 300))
state = jaxlm.TrainState.for_body(body, tables, params, jaxlm.TrainConfig(num_sampled=500), tx=tx)
rng = np.random.default_rng(0)
for step in range(300):  # each word is the one before plus one, of words by Zipf's law
    first = np.exp(rng.random((BATCH_SIZE, 1)) * np.log(VOCAB_SIZE - CONTEXT)).astype(np.int32) - 1
    ids = first + np.arange(CONTEXT, dtype=np.int32)
    state, loss = jaxlm.train_step(state, jaxlm.Batch((ids,), ids[:, -1:] + 1))
    if (step + 1) % 100 == 0:
        print(f"step {step + 1}: training loss {loss:.3f}")
