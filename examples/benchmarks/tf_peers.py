"""Keras layers with TensorFlow's sampled softmax, and Keras' full softmax."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from peers import Peer, Start, perplexity
from problem import Problem

import jaxlm


def keras_full(problem: Problem, start: Start) -> Peer:
    """Keras' full softmax with Keras' initializers, as `model.fit` trains it."""
    import convert
    from convert.keras_models.builder import build

    model = build(problem.model_config)
    model.compile(problem.optimizer, "sparse_categorical_crossentropy")

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> float:
        model.optimizer.learning_rate = learning_rate
        return float(model.train_on_batch(inputs, labels))

    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        return jaxlm.evaluate(convert.from_keras(model), tokens, max_tokens=max_tokens).perplexity

    return Peer(step, evaluate)


def _sampled(problem: Problem, start: Start, make_apply: Callable) -> Peer:
    """Keras layers and `tf.nn.sampled_softmax_loss`; `make_apply(variables)` gives a function of gradients and rate."""
    embedding = keras.layers.Embedding(problem.vocab_size, problem.embedding_size)
    lstm = keras.layers.LSTM(problem.hidden_size, return_sequences=True, return_state=True)
    embedding.build()
    lstm.build((None, None, problem.embedding_size))
    embedding.set_weights([start.embedding])
    lstm.set_weights([start.kernel, start.recurrent_kernel, start.bias])
    weights, biases = keras.Variable(start.weights), keras.Variable(start.biases)
    variables = [embedding.embeddings, weights, biases, *lstm.trainable_weights]
    apply_gradients = make_apply(variables)
    carry = [tf.Variable(tf.zeros((problem.batch_size, problem.hidden_size))) for _ in range(2)]
    num_sampled, rate = min(problem.num_sampled, problem.vocab_size), tf.Variable(0.0)

    @tf.function
    def update(inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs, *new_carry = lstm(tf.nn.embedding_lookup(embedding.embeddings.value, inputs), initial_state=carry)
            hidden, classes = tf.reshape(outputs, (-1, problem.hidden_size)), tf.reshape(labels, (-1, 1))
            rows = (weights.value, biases.value, classes, hidden, num_sampled, problem.vocab_size)
            loss = tf.reduce_mean(tf.nn.sampled_softmax_loss(*rows))
        apply_gradients(tape.gradient(loss, [variable.value for variable in variables]), rate)
        for variable, value in zip(carry, new_carry, strict=True):
            variable.assign(value)
        return loss

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> float:
        rate.assign(learning_rate)
        return float(update(tf.constant(inputs), tf.constant(labels, tf.int64)))

    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        return perplexity(problem, Start(*(variable.numpy() for variable in variables)), tokens, max_tokens)

    return Peer(step, evaluate)


def keras_sampled(problem: Problem, start: Start) -> Peer:
    """Keras layers, TensorFlow's sampled softmax, Keras' optimizer."""

    def make_apply(variables: list) -> Callable:
        settings = {"beta_2": problem.beta_2} if problem.optimizer == "adam" else {}
        optimizer = keras.optimizers.get(
            {"class_name": problem.optimizer, "config": settings | {"global_clipnorm": 10.0}}
        )
        optimizer.build(variables)

        def apply_gradients(gradients: list, rate: tf.Variable) -> None:
            optimizer.learning_rate.assign(rate)
            optimizer.apply(gradients)

        return apply_gradients

    return _sampled(problem, start, make_apply)


def tf_sparse(problem: Problem, start: Start) -> Peer:
    """Keras layers, TensorFlow's sampled softmax, TensorFlow's raw sparse Adagrad kernels."""

    def make_apply(variables: list) -> Callable:
        sums = [tf.Variable(tf.fill(variable.shape, 0.1)) for variable in variables]

        def apply_gradients(gradients: list, rate: tf.Variable) -> None:
            for variable, total, gradient in zip(variables, sums, gradients, strict=True):
                arguments = dict(var=variable.value.handle, accum=total.handle, lr=rate, epsilon=1e-7)
                if isinstance(gradient, tf.IndexedSlices):
                    indices, place = tf.unique(gradient.indices)
                    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(indices))
                    tf.raw_ops.ResourceSparseApplyAdagradV2(**arguments, grad=values, indices=indices)
                else:
                    tf.raw_ops.ResourceApplyAdagradV2(**arguments, grad=gradient)

        return apply_gradients

    return _sampled(problem, start, make_apply)


PEERS = {"keras-full": keras_full, "keras-sampled": keras_sampled, "tf-sparse": tf_sparse}
