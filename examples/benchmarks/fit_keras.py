"""Times a step of `convert.fit_keras` beside the step of `jaxlm train` that it is made of.

    python examples/benchmarks/fit_keras.py
    KERAS_BACKEND=jax python examples/benchmarks/fit_keras.py --cell GRU

Both train the same Keras model on the same sequences. They take turns in random order, a few steps at a time; each
loss is fetched while the next step runs. The time of a call besides its steps is printed, too, and whether Keras
evaluates the model to the loss in the history. `jaxlm train` has no GRU, which is timed alone.
"""

import random
import time
from collections.abc import Iterator
from typing import Literal

import keras
import numpy as np
import tyro
from measure import machine, milliseconds, print_table

import convert
import jaxlm


class Sequences(keras.utils.PyDataset):
    """Batches of words by Zipf's law, and the times at which they were asked for."""

    def __init__(self, vocab_size: int, batch_size: int, sequence_length: int, num_batches: int):
        super().__init__()
        random_numbers = np.random.default_rng(0).random((num_batches, batch_size, sequence_length + 1))
        self.words = np.exp(random_numbers * np.log(vocab_size)).astype(np.int32) - 1
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.times.append(time.perf_counter())
        return self.words[index, :, :-1], self.words[index, :, 1:]


def steps_of_fit_keras(model: keras.Model, data: Sequences, num_sampled: int) -> tuple[list[float], float]:
    """Returns the seconds of the steps of a call, and those of the whole call."""
    data.times.clear()
    start = time.perf_counter()
    convert.fit_keras(model, data, num_sampled=num_sampled, shuffle=False, verbose=0)
    seconds = time.perf_counter() - start
    return np.diff(data.times[len(data) :]).tolist()[2:], seconds  # after the pass that counts


def steps_of_jaxlm(state: jaxlm.TrainState, data: Sequences) -> Iterator[tuple[jaxlm.TrainState, float]]:
    """Yields the state after each step, and its seconds."""
    loss, start = None, time.perf_counter()
    for words in data.words:
        state, next_loss = jaxlm.train_step(state, (words[:, :-1], words[:, 1:], True), 3e-3)
        if loss is not None:
            float(loss)
        loss = next_loss
        now = time.perf_counter()
        yield state, now - start
        start = now


def main(
    vocab_size: int = 200_000,
    embedding_size: int = 256,
    hidden_size: int = 1024,
    num_sampled: int = 1000,
    batch_size: int = 32,
    sequence_length: int = 35,
    steps: int = 12,
    repeats: int = 4,
    cell: Literal["LSTM", "GRU"] = "LSTM",
) -> None:
    """Prints a table.

    Args:
      vocab_size: Number of words.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      num_sampled: Sampled classes.
      batch_size: Sequences.
      sequence_length: Time steps.
      steps: Of a turn; the first two are not timed.
      repeats: Turns of each.
      cell: The recurrent layer.
    """
    model = keras.Sequential(
        [
            keras.layers.Embedding(vocab_size, embedding_size),
            getattr(keras.layers, cell)(hidden_size, return_sequences=True),
            keras.layers.Dense(vocab_size, activation="softmax"),
        ]
    )
    model.build((None, sequence_length))
    model.compile(keras.optimizers.Adam(3e-3, global_clipnorm=10.0), "sparse_categorical_crossentropy")
    data = Sequences(vocab_size, batch_size, sequence_length, steps)
    config = jaxlm.TrainConfig(batch_size=batch_size, sequence_length=sequence_length, num_sampled=num_sampled)
    times: dict[str, list[float]] = {"fit_keras": []}
    if cell == "LSTM":
        times["jaxlm train"] = []
        state = jaxlm.TrainState.create(convert.from_keras(model), config)
    calls, order = [], [*times] * repeats
    for turn, name in enumerate([*times, *random.Random(0).sample(order, len(order))]):
        if name == "fit_keras":
            seconds, call = steps_of_fit_keras(model, data, num_sampled)
            calls.append(call - len(data) * float(np.median(seconds)))
        else:
            seconds = []
            for new_state, second in steps_of_jaxlm(state, data):
                state = new_state
                seconds.append(second)
            seconds = seconds[2:]
        if turn >= len(times):  # the first turns compile
            times[name] += seconds
    few = data.words[0, :8, :-1], data.words[0, :8, 1:]
    history = convert.fit_keras(model, data, num_sampled=num_sampled, shuffle=False, verbose=0, validation_data=few)
    exact = model.evaluate(*few, batch_size=2, verbose=0)
    print(machine("keras", "tensorflow"))
    print(
        f"V {vocab_size:,}, E {embedding_size}, H {hidden_size}, S {num_sampled:,}, B {batch_size},"
        f" T {sequence_length}, {cell}, Adam, {keras.backend.backend()}"
    )
    print(f"a call of fit_keras takes {np.median(calls[1:]):.1f} s besides its steps, the first {calls[0]:.1f} s")
    print(f"val_loss {history.history['val_loss'][0]:.6f}; model.evaluate on the same 8 sequences: {exact:.6f}")
    ours = float(np.median(times["fit_keras"]))
    rows = [[name, *milliseconds(seconds), f"{ours / np.median(seconds):.2f}"] for name, seconds in times.items()]
    print_table(["method", "median ms", "min ms", "fit_keras' time over it"], rows)


if __name__ == "__main__":
    tyro.cli(main)
