"""The same training step by other means, each with its own best public API, as a user would write it.

Embedding -> LSTM -> softmax with the state carried over, gradients through all of it, one optimizer step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from problem import Problem

import jaxlm


class Start(NamedTuple):
    """Values that a peer starts from: numpy arrays with the shapes of a `jaxlm.LanguageModel`."""

    embedding: np.ndarray  # [V, E]
    weights: np.ndarray  # [V, softmax_size]
    biases: np.ndarray  # [V]
    kernel: np.ndarray  # [E, 4H]
    recurrent_kernel: np.ndarray  # [H, 4H]
    bias: np.ndarray  # [4H]


class Peer(NamedTuple):
    """A method that is ready to train."""

    step: Callable[[np.ndarray, np.ndarray, float], Any]  # inputs, labels [batch, time], learning rate -> loss
    evaluate: Callable[[np.ndarray, int], float] | None = None  # text, number of its words to score -> perplexity


def random_start(problem: Problem) -> Start:
    """Returns random values, for timing."""
    rng = np.random.default_rng(0)
    vocab_size, gates = problem.vocab_size, 4 * problem.hidden_size
    shapes = (
        (vocab_size, problem.embedding_size),
        (vocab_size, problem.softmax_size),
        (vocab_size,),
        (problem.embedding_size, gates),
        (problem.hidden_size, gates),
        (gates,),
    )
    return Start(*(rng.uniform(-0.03, 0.03, shape).astype(np.float32) for shape in shapes))


def start_of(model: jaxlm.LanguageModel) -> Start:
    """Returns the values of a model of one LSTM layer."""
    lstm = model.lstms[0]
    params = (model.embedding, model.weights, model.biases, lstm.kernel, lstm.recurrent_kernel, lstm.bias)
    return Start(*(np.array(param[...]) for param in params))


def perplexity(problem: Problem, values: Start, tokens: np.ndarray, max_tokens: int) -> float:
    """Returns the exact perplexity of a peer's values."""
    from flax import nnx

    model = jaxlm.LanguageModel(problem.model_config, rngs=nnx.Rngs(0))
    lstm = model.lstms[0]
    params = (model.embedding, model.weights, model.biases, lstm.kernel, lstm.recurrent_kernel, lstm.bias)
    for param, array in zip(params, values, strict=True):
        param[...] = array
    return jaxlm.evaluate(model, tokens, max_tokens=max_tokens).perplexity


def jaxlm_peer(problem: Problem, start: Start) -> Peer:
    """jaxlm's own step."""
    state = problem.state()

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> Any:
        nonlocal state
        state, loss = jaxlm.train_step(state, (inputs, labels), learning_rate)
        return loss

    return Peer(step)


def jax_dense(problem: Problem, start: Start) -> Peer:
    """jaxlm's model and loss, differentiated through whole tables, with dense Optax: a first version in JAX."""
    import jax
    import optax
    from flax import nnx

    graphdef, params = nnx.split(jaxlm.LanguageModel(problem.model_config, rngs=nnx.Rngs(0)))
    transform = optax.inject_hyperparams(getattr(optax, problem.optimizer))(learning_rate=1e-3)
    carry = nnx.merge(graphdef, params).initial_carry(problem.batch_size)
    state = [params, jax.jit(transform.init)(params), carry, jax.random.key(0)]

    def loss_of(params, inputs, labels, carry, key):
        model = nnx.merge(graphdef, params)
        hidden, carry = model.hidden(model.embed(inputs), carry)
        rows = (model.weights[...], model.biases[...], labels.reshape(-1, 1), hidden.reshape(-1, problem.softmax_size))
        losses = jaxlm.sampled_softmax_loss(*rows, problem.num_sampled, problem.vocab_size, key=key)
        return losses.mean(), carry

    @jax.jit(donate_argnums=(0, 1))
    def update(params, opt_state, carry, key, inputs, labels, learning_rate):
        key, now = jax.random.split(key)
        opt_state.hyperparams["learning_rate"] = learning_rate
        (loss, carry), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, inputs, labels, carry, now)
        updates, opt_state = transform.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, carry, key, loss

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> Any:
        *state[:], loss = update(*state, inputs, labels, np.float32(learning_rate))
        return loss

    return Peer(step)


def make_peer(name: str, problem: Problem, start: Start) -> Peer:
    """Sets a method up.

    Args:
      name: of the method, such as "torch-sampled"; "-adam", "-float32" and "-bfloat16" after it change the problem,
        and "-compiled" compiles PyTorch's loss.
      problem: sizes of the step.
      start: values to start from, for those with a place for them.
    """
    if name.endswith("-adam"):
        return make_peer(name.removesuffix("-adam"), dataclasses.replace(problem, optimizer="adam"), start)
    if name.endswith(("-float32", "-bfloat16")):
        name, dtype = name.rsplit("-", 1)
        return make_peer(name, dataclasses.replace(problem, compute_dtype=dtype), start)
    if name.startswith("torch"):
        import torch_peers

        return torch_peers.make_peer(name, problem, start)
    if name.startswith(("tf", "keras")):
        import tf_peers

        return tf_peers.PEERS[name](problem, start)
    return {"jaxlm": jaxlm_peer, "jax-dense": jax_dense}[name](problem, start)
