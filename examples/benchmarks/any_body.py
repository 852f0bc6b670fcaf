"""Times a step of `convert.fit_keras` beside one of `model.fit`, for models that are not a chain of LSTMs.

    KERAS_BACKEND=jax python examples/benchmarks/any_body.py --vocab-size 200000 --keras-steps 4
    KERAS_BACKEND=tensorflow python examples/benchmarks/any_body.py --vocab-size 200000 --keras-steps 4

The same models and batches, one method after the other; the median leaves out the first two steps, which compile. Under
TensorFlow's backend, which has no `fit_keras` for these models, `tf.nn.sampled_softmax_loss` is timed instead, in a
training step of its own. `--keras-steps 0` leaves `model.fit` out, which holds all logits.
"""

import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import keras
import numpy as np
import tyro
from keras import layers
from measure import machine, milliseconds, print_table

import convert

Inputs = np.ndarray | tuple[np.ndarray, ...]


class Batches(keras.utils.PyDataset):
    """Batches of words by Zipf's law, and the times at which they were asked for."""

    def __init__(self, model: keras.Model, vocab_size: int, batch_size: int, length: int, num_batches: int):
        super().__init__()
        rng = np.random.default_rng(0)
        shape = (num_batches, batch_size, length + 1)
        self.words = np.exp(rng.random(shape) * np.log(vocab_size)).astype(np.int32) - 1
        self.users = rng.integers(0, USERS, (num_batches, batch_size, 1))
        self.model, self.times = model, []

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Inputs, np.ndarray]:
        self.times.append(time.perf_counter())
        words, every = self.words[index], len(self.model.outputs[0].shape) == 3
        inputs = (words[:, :-1], self.users[index])[: len(self.model.inputs)]
        return (inputs if len(inputs) > 1 else inputs[0]), (words[:, 1:] if every else words[:, -1])


USERS = 100_000
QUIET = {"shuffle": False, "verbose": 0}


def gru(vocab_size: int, length: int) -> keras.Model:
    """Returns TensorFlow's text tutorial: Embedding -> GRU(1024) -> Dense."""
    ids = keras.Input((length,), dtype="int32")
    hidden = layers.GRU(1024, return_sequences=True)(layers.Embedding(vocab_size, 256)(ids))
    return keras.Model(ids, layers.Dense(vocab_size, activation="softmax")(hidden))


def bidirectional(vocab_size: int, length: int, return_sequences: bool = False) -> keras.Model:
    """Returns the most copied next-word tutorial: a Bidirectional LSTM that predicts the last word.

    With `return_sequences`, it has a label for each position, as in tagging and in filling blanks.
    """
    ids = keras.Input((length,), dtype="int32")
    lstm = layers.LSTM(150, return_sequences=return_sequences)
    hidden = layers.Bidirectional(lstm)(layers.Embedding(vocab_size, 100)(ids))
    return keras.Model(ids, layers.Dense(vocab_size, activation="softmax")(hidden))


def transformer(vocab_size: int, length: int) -> keras.Model:
    """Returns a causal Transformer block."""
    ids = keras.Input((length,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(vocab_size, 256)(ids))
    x = layers.Add()([x, layers.MultiHeadAttention(4, 64)(x, x, use_causal_mask=True)])
    x = layers.Add()([x, layers.Dense(256)(layers.Dense(1024, activation="relu")(layers.LayerNormalization()(x)))])
    return keras.Model(ids, layers.Dense(vocab_size, activation="softmax")(layers.LayerNormalization()(x)))


def recommender(vocab_size: int, length: int) -> keras.Model:
    """Returns a recommender: the next item, given a history of items and a user."""
    items, user = keras.Input((length,), dtype="int32"), keras.Input((1,), dtype="int32")
    history = layers.GlobalAveragePooling1D()(layers.Embedding(vocab_size, 64)(items))
    both = layers.Concatenate()([history, layers.Flatten()(layers.Embedding(USERS, 64)(user))])
    return keras.Model([items, user], layers.Dense(vocab_size)(layers.Dense(64, activation="relu")(both)))


BODIES: dict[str, Callable[[int, int], keras.Model]] = {
    "gru": gru,
    "bidirectional": bidirectional,
    "tagger": partial(bidirectional, return_sequences=True),
    "transformer": transformer,
    "recommender": recommender,
}


def tensorflow_sampled(model: keras.Model, data: Batches, num_sampled: int) -> None:
    """Trains the body of a model with TensorFlow's sampled softmax and Keras' optimizer, in a loop of its own."""
    import tensorflow as tf

    head, optimizer = model.layers[-1], model.optimizer
    body, vocab_size = keras.Model(model.inputs, head.input), head.units
    weights, biases = keras.Variable(np.transpose(head.kernel)), keras.Variable(head.bias)
    variables = [*body.trainable_variables, weights, biases]
    optimizer.build(variables)

    @tf.function
    def step(inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            hidden = tf.reshape(body(inputs, training=True), (-1, head.kernel.shape[0]))
            classes = tf.reshape(labels, (-1, 1))
            rows = weights.value, biases.value, classes, hidden, num_sampled, vocab_size
            loss = tf.reduce_mean(tf.nn.sampled_softmax_loss(*rows))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]))
        return loss

    for number in range(len(data)):
        inputs, labels = data[number]
        float(step(keras.tree.map_structure(tf.constant, inputs), tf.constant(labels, tf.int64)))


def times_of(fit: Callable[..., object], model: keras.Model, data: Batches, passes: int) -> list[float]:
    """Returns the seconds of the steps of a call, without the two that compile."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=len(model.inputs) > 1)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    data.times.clear()
    fit(data)
    return np.diff(data.times[(passes - 1) * len(data) :]).tolist()[2:]


def main(
    bodies: tuple[str, ...] = tuple(BODIES),
    vocab_size: int = 20_000,
    num_sampled: int = 1000,
    batch_size: int = 32,
    sequence_length: int = 35,
    steps: int = 12,
    keras_steps: int = 6,
) -> None:
    """Prints a table.

    Args:
      bodies: Which models.
      vocab_size: Number of classes.
      num_sampled: Sampled classes.
      batch_size: Sequences.
      sequence_length: Time steps.
      steps: Of `fit_keras`; the first two are not timed.
      keras_steps: Of `model.fit`; 0 to leave it out.
    """
    rows, on_jax = [], keras.backend.backend() == "jax"
    for name in bodies:
        model = BODIES[name](vocab_size, sequence_length)
        sizes = vocab_size, batch_size, sequence_length

        def sampled(data: Batches, model: keras.Model = model) -> object:
            if on_jax:
                return convert.fit_keras(model, data, num_sampled=num_sampled, **QUIET)
            return tensorflow_sampled(model, data, num_sampled)

        def full(data: Batches, model: keras.Model = model) -> object:
            ends: list[float] = []  # Keras asks for batches ahead of the steps, and a callback waits for the loss
            clock = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
            )
            model.fit(data, callbacks=[clock], **QUIET)
            data.times[:] = ends

        ours = times_of(sampled, model, Batches(model, *sizes, steps), 1 + on_jax)  # fit_keras first counts the words
        method = "fit_keras" if on_jax else "tf.nn.sampled_softmax_loss"
        rows.append([name, method, *milliseconds(ours), "1.0"])
        if keras_steps:
            theirs = times_of(full, model, Batches(model, *sizes, keras_steps), 1)
            rows.append([name, "model.fit", *milliseconds(theirs), f"{np.median(theirs) / np.median(ours):.1f}"])
    print(machine("keras", *([] if on_jax else ["tensorflow"])))
    print(f"V {vocab_size:,}, S {num_sampled:,}, B {batch_size}, T {sequence_length}, Adam, {keras.backend.backend()}")
    print_table(["body", "method", "median ms", "min ms", "time over the sampled step's"], rows)


if __name__ == "__main__":
    tyro.cli(main)
