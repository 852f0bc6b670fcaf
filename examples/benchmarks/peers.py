"""The same training step by other means, each with its own best public API: what a user would choose instead.

Embedding -> LSTM -> softmax with the state carried over, gradients through all of it, one optimizer step. Each
function sets up a peer and returns a call that starts one step on a given batch and returns its loss; `float` of the
loss waits until the step is done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Sizes of the step and its optimizer."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_sampled: int
    batch_size: int
    sequence_length: int
    optimizer: str  # adagrad or adam
    projection_size: int = 0  # of a bottleneck between LSTM and softmax; jaxlm and the torch peers have it
    compute_dtype: str = "float32"  # of the factors of products, as far as a peer has a choice

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.projection_size or self.hidden_size


Step = Callable[[np.ndarray, np.ndarray], Any]  # inputs and labels [batch_size, sequence_length] int32 -> loss
LEARNING_RATE = 1e-3


def jaxlm_step(problem: Problem) -> Step:
    """Returns jaxlm's own step, with memory kept between steps as in `jaxlm train`."""
    from jaxlm.cli.command_line import keep_freed_memory

    keep_freed_memory()
    from flax import nnx

    import jaxlm

    config = jaxlm.TrainConfig(
        batch_size=problem.batch_size,
        sequence_length=problem.sequence_length,
        num_sampled=problem.num_sampled,
        optimizer=problem.optimizer,
        compute_dtype=problem.compute_dtype,
    )
    sizes = (problem.vocab_size, problem.embedding_size, problem.hidden_size)
    model = jaxlm.ModelConfig(*sizes, projection_size=problem.projection_size)
    state = jaxlm.TrainState.create(jaxlm.LanguageModel(model, rngs=nnx.Rngs(0)), config)

    def step(inputs: np.ndarray, labels: np.ndarray) -> Any:
        nonlocal state
        state, loss = jaxlm.train_step(state, (inputs, labels), LEARNING_RATE)
        return loss

    return step


def jax_dense(problem: Problem) -> Step:
    """jaxlm's model and loss, differentiated through whole tables, with dense Optax: what a JAX user writes first."""
    import jax
    import optax
    from flax import nnx

    import jaxlm

    config = jaxlm.ModelConfig(problem.vocab_size, problem.embedding_size, problem.hidden_size)
    graphdef, params = nnx.split(jaxlm.LanguageModel(config, rngs=nnx.Rngs(0)))
    transform = getattr(optax, problem.optimizer)(LEARNING_RATE)
    carry = nnx.merge(graphdef, params).initial_carry(problem.batch_size)
    state = [params, jax.jit(transform.init)(params), carry]

    def loss_of(params, inputs, labels, carry, key):
        model = nnx.merge(graphdef, params)
        hidden, carry = model.hidden(model.embed(inputs), carry)
        rows = (model.weights[...], model.biases[...], labels.reshape(-1, 1), hidden.reshape(-1, problem.hidden_size))
        losses = jaxlm.sampled_softmax_loss(*rows, problem.num_sampled, problem.vocab_size, key=key)
        return losses.mean(), carry

    @jax.jit(donate_argnums=(0, 1))
    def update(params, opt_state, carry, inputs, labels, key):
        (loss, carry), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, inputs, labels, carry, key)
        updates, opt_state = transform.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, carry, loss

    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def step(inputs: np.ndarray, labels: np.ndarray) -> float:
        *state[:], loss = jax.block_until_ready(update(*state, inputs, labels, next(keys)))
        return float(loss)

    return step


def keras_full(problem: Problem) -> Step:
    """The question's model: Keras' full softmax."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Embedding(problem.vocab_size, problem.embedding_size),
            keras.layers.LSTM(problem.hidden_size, return_sequences=True),
            keras.layers.Dense(problem.vocab_size, activation="softmax"),
        ]
    )
    model.compile(problem.optimizer, "sparse_categorical_crossentropy")
    return lambda inputs, labels: float(model.train_on_batch(inputs, labels))


def _tensorflow_step(problem: Problem, apply: Callable) -> Step:
    """Keras layers and `tf.nn.sampled_softmax_loss`; `apply(keras_variables)` returns what applies gradients."""
    import keras
    import tensorflow as tf

    embedding = keras.layers.Embedding(problem.vocab_size, problem.embedding_size)
    lstm = keras.layers.LSTM(problem.hidden_size, return_sequences=True, return_state=True)
    embedding.build()
    lstm.build((None, None, problem.embedding_size))
    limit = (6.0 / (problem.vocab_size + problem.hidden_size)) ** 0.5
    weights = keras.Variable(tf.random.uniform((problem.vocab_size, problem.hidden_size), -limit, limit))
    biases = keras.Variable(tf.zeros(problem.vocab_size))
    h, c = (tf.Variable(tf.zeros((problem.batch_size, problem.hidden_size))) for _ in range(2))
    keras_variables = [embedding.embeddings, *lstm.trainable_weights, weights, biases]
    apply_gradients = apply(keras_variables)
    variables = [variable.value for variable in keras_variables]

    @tf.function
    def update(inputs, labels):
        with tf.GradientTape() as tape:
            outputs, new_h, new_c = lstm(tf.nn.embedding_lookup(variables[0], inputs), initial_state=[h, c])
            loss = tf.reduce_mean(
                tf.nn.sampled_softmax_loss(
                    weights.value,
                    biases.value,
                    tf.reshape(labels, (-1, 1)),
                    tf.reshape(outputs, (-1, problem.hidden_size)),
                    problem.num_sampled,
                    problem.vocab_size,
                )
            )
        apply_gradients(tape.gradient(loss, variables))
        h.assign(new_h)
        c.assign(new_c)
        return loss

    return lambda inputs, labels: float(update(tf.constant(inputs), tf.constant(labels, tf.int64)))


def keras_sampled(problem: Problem) -> Step:
    """Keras layers, TensorFlow's sampled softmax, Keras' optimizer."""
    import keras

    def apply(variables: list) -> Callable:
        optimizer = keras.optimizers.get({"class_name": problem.optimizer, "config": {"learning_rate": LEARNING_RATE}})
        optimizer.build(variables)
        return optimizer.apply

    return _tensorflow_step(problem, apply)


def tf_sparse(problem: Problem) -> Step:
    """Keras layers, TensorFlow's sampled softmax, TensorFlow's raw sparse Adagrad kernels."""
    import tensorflow as tf

    def apply(variables: list) -> Callable:
        sums = [tf.Variable(tf.fill(variable.shape, 0.1)) for variable in variables]

        def apply_gradients(gradients: list) -> None:
            for variable, total, gradient in zip(variables, sums, gradients, strict=True):
                arguments = dict(var=variable.value.handle, accum=total.handle, lr=LEARNING_RATE, epsilon=1e-7)
                if isinstance(gradient, tf.IndexedSlices):
                    indices, place = tf.unique(gradient.indices)
                    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(indices))
                    tf.raw_ops.ResourceSparseApplyAdagradV2(**arguments, grad=values, indices=indices)
                else:
                    tf.raw_ops.ResourceApplyAdagradV2(**arguments, grad=gradient)

        return apply_gradients

    return _tensorflow_step(problem, apply)


def _torch_step(problem: Problem, output: Callable) -> Step:
    """PyTorch's LSTM on a sparse embedding, on a GPU if there is one; `output(torch)` returns modules and the loss."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedding = torch.nn.Embedding(problem.vocab_size, problem.embedding_size, sparse=True)
    lstm = torch.nn.LSTM(problem.embedding_size, problem.hidden_size, batch_first=True)
    bottleneck = torch.nn.Identity()
    if problem.projection_size:
        bottleneck = torch.nn.Linear(problem.hidden_size, problem.projection_size, bias=False)
    modules, loss_of = output(torch)
    parameters = torch.nn.ModuleList([embedding, lstm, bottleneck, *modules]).to(device).parameters()
    optimizer = torch.optim.Adagrad(parameters, lr=LEARNING_RATE)
    carry = [torch.zeros(1, problem.batch_size, problem.hidden_size, device=device) for _ in range(2)]

    def ids(words: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(words).long().to(device)

    def step(inputs: np.ndarray, labels: np.ndarray) -> Any:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=problem.compute_dtype == "bfloat16"):
            hidden, new_carry = lstm(embedding(ids(inputs)), tuple(carry))
            loss = loss_of(bottleneck(hidden).flatten(0, 1), ids(labels).flatten())
        loss.backward()
        optimizer.step()
        carry[:] = [state.detach().float() for state in new_carry]
        return loss.detach()

    return step


def torch_sparse(problem: Problem) -> Step:
    """PyTorch, sampled softmax by hand (it has none), sparse gradients, Adagrad."""

    def output(torch) -> tuple[list, Callable]:
        weights = torch.nn.Embedding(problem.vocab_size, problem.softmax_size, sparse=True)
        biases = torch.nn.Embedding(problem.vocab_size, 1, sparse=True)
        generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)

        def loss_of(hidden, labels):
            return torch_sampled_loss(hidden, labels, weights, biases, problem.num_sampled, generator)

        return [weights, biases], loss_of

    return _torch_step(problem, output)


def torch_lstm(layer):
    """Returns PyTorch's LSTM with the parameters of a `jaxlm.model.lstm.LSTM`."""
    import torch

    kernel, recurrent_kernel, bias = (
        np.array(param[...]) for param in (layer.kernel, layer.recurrent_kernel, layer.bias)
    )
    lstm = torch.nn.LSTM(kernel.shape[0], recurrent_kernel.shape[0], batch_first=True)
    arrays = (kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias))
    for parameter, array in zip(lstm.parameters(), arrays, strict=True):
        parameter.data.copy_(torch.from_numpy(array))
    return lstm


def torch_sampled_loss(hidden, labels, weights, biases, num_sampled: int, generator):
    """The sampled softmax that a user writes in PyTorch: log-uniform candidates, distinct, shared by the batch.

    It never waits for a GPU.

    Args:
      hidden: `[N, D]` tensor.
      labels: `[N]` tensor of ids.
      weights, biases: `torch.nn.Embedding` of V rows, D and 1 wide.
      num_sampled: candidates, the first distinct ones of four times as many draws.
      generator: `torch.Generator` they are drawn with, on the device of the tensors.

    Returns:
      The mean loss.
    """
    import torch

    size, count, device = weights.num_embeddings, labels.numel(), labels.device
    log_size = np.log(size + 1)
    uniform = torch.rand(4 * num_sampled, generator=generator, device=device, dtype=torch.float64)
    draws = torch.exp(uniform * log_size).long().clamp(1, size) - 1
    ordered, order = torch.sort(draws, stable=True)
    is_repeated = torch.zeros_like(draws, dtype=torch.bool)
    is_repeated[order[1:]] = ordered[1:] == ordered[:-1]
    first = torch.argsort(is_repeated.int(), stable=True)[:num_sampled]
    sampled, tries = draws[first], first[-1] + 1

    def log_count(ids):
        return torch.log(-torch.expm1(tries * torch.log1p(-torch.log1p(1.0 / (ids + 1.0)) / log_size)))

    rows, bias = weights(torch.cat([labels, sampled])), biases(torch.cat([labels, sampled]))[:, 0]
    true = (hidden * rows[:count]).sum(1) + bias[:count] - log_count(labels)
    logits = hidden @ rows[count:].T + bias[count:] - log_count(sampled)
    logits = logits.masked_fill(labels[:, None] == sampled[None, :], -1e30)
    logits = torch.cat([true[:, None], logits], dim=1)
    return torch.nn.functional.cross_entropy(logits, torch.zeros_like(labels))


def torch_adaptive(problem: Problem) -> Step:
    """PyTorch's adaptive softmax (Grave et al. 2017), its own answer to large vocabularies; Adagrad."""

    def output(torch) -> tuple[list, Callable]:
        cutoffs = [problem.vocab_size // 100, problem.vocab_size // 10, problem.vocab_size // 2]
        softmax = torch.nn.AdaptiveLogSoftmaxWithLoss(problem.softmax_size, problem.vocab_size, cutoffs)
        return [softmax], lambda hidden, labels: softmax(hidden, labels).loss

    return _torch_step(problem, output)


PEERS = {
    "jaxlm": jaxlm_step,
    "jax-dense": jax_dense,
    "keras-full": keras_full,
    "keras-sampled": keras_sampled,
    "tf-sparse": tf_sparse,
    "torch-sparse": torch_sparse,
    "torch-adaptive": torch_adaptive,
}
