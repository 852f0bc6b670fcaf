"""Compares what equal time of training gives: jaxlm, and what a user would choose instead.

    jaxlm prepare TEXT --vocab-size 200000 --out data
    python examples/benchmarks/equal_time.py data --minutes 2 5 --plot-file equal_time.png

Every run has a process of its own and the machine for itself. All train the same model on the same text with Adam and
a learning rate that falls linearly over the last half of the time. All but keras-full, which is Keras as it comes,
start from jaxlm's unigram biases and word vectors, as far as they have a place for them. The torch methods multiply
bfloat16 where jaxlm does, and need the extra `bench`. Perplexities are exact, on the same words.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from measure import machine, print_table

import jaxlm

Method = Literal["jaxlm", "torch-sampled", "torch-adaptive", "tf-sampled", "keras-full"]
BATCH_SIZE, SEQUENCE_LENGTH, NUM_SAMPLED = 32, 35, 1000  # of the others; jaxlm has its defaults


class Trainer(NamedTuple):
    """A method that is ready to train."""

    step: Callable[[np.ndarray, np.ndarray, float], Any]  # inputs and labels [batch, time], learning rate
    evaluate: Callable[[np.ndarray, int], float]  # text, how many of its words to score -> perplexity


def torch_trainer(start: jaxlm.LanguageModel, adaptive: bool) -> Trainer:
    """PyTorch with a sampled softmax by hand, or with its own adaptive softmax; lazy Adam for rows."""
    import torch
    from peers import torch_lstm, torch_sampled_loss

    from jaxlm.data.batches import evaluation_batches
    from jaxlm.matmul import fast_dtype

    torch.manual_seed(0)
    config, generator = start.config, torch.Generator().manual_seed(0)

    def rows(table: np.ndarray) -> torch.nn.Embedding:
        return torch.nn.Embedding.from_pretrained(torch.from_numpy(np.array(table)), freeze=False, sparse=True)

    embedding = rows(start.embedding[...])
    lstm = torch_lstm(start.lstms[0])
    sparse, dense = [*embedding.parameters()], [*lstm.parameters()]
    if adaptive:
        cutoffs = [config.vocab_size // 100, config.vocab_size // 10, config.vocab_size // 2]
        softmax = torch.nn.AdaptiveLogSoftmaxWithLoss(config.hidden_size, config.vocab_size, cutoffs)
        dense += softmax.parameters()
    else:
        weights, biases = rows(start.weights[...]), rows(start.biases[...][:, None])
        sparse += [*weights.parameters(), *biases.parameters()]
    optimizers = [torch.optim.SparseAdam(sparse), torch.optim.Adam(dense)]
    carry = None

    def loss_of(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if adaptive:
            return softmax(hidden, labels).loss
        return torch_sampled_loss(hidden, labels, weights, biases, min(NUM_SAMPLED, config.vocab_size), generator)

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        nonlocal carry
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = learning_rate
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() == "bfloat16"):
            hidden, new_carry = lstm(embedding(torch.from_numpy(inputs).long()), carry)
            loss = loss_of(hidden.flatten(0, 1), torch.from_numpy(labels).long().flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense, 10.0)
        for optimizer in optimizers:
            optimizer.step()
        carry = tuple(state.detach().float() for state in new_carry)

    def evaluate_adaptive(tokens: np.ndarray, max_tokens: int) -> float:
        total, count, state = 0.0, 0, None
        with torch.no_grad():
            for batch in evaluation_batches(tokens, 32, 35, max_tokens):
                hidden, state = lstm(embedding(torch.from_numpy(batch.inputs).long()), state)
                counted = torch.from_numpy(batch.weights.ravel() > 0)
                labels = torch.from_numpy(batch.labels).long().flatten()[counted]
                total -= float(softmax(hidden.flatten(0, 1)[counted], labels).output.double().sum())
                count += len(labels)
        return math.exp(total / count)

    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        kernel, recurrent_kernel, *two = (parameter.detach().numpy().T for parameter in lstm.parameters())
        tables = (table.weight.detach().numpy() for table in (embedding, weights, biases))
        return perplexity(start, (*tables, kernel, recurrent_kernel, sum(two)), tokens, max_tokens)

    return Trainer(step, evaluate_adaptive if adaptive else evaluate)


def tf_trainer(start: jaxlm.LanguageModel) -> Trainer:
    """Keras layers, TensorFlow's sampled softmax, Keras' Adam."""
    import keras
    import tensorflow as tf

    config = start.config
    embedding = keras.layers.Embedding(config.vocab_size, config.embedding_size)
    lstm = keras.layers.LSTM(config.hidden_size, return_sequences=True, return_state=True)
    embedding.build()
    lstm.build((None, None, config.embedding_size))
    embedding.set_weights([start.embedding[...]])
    lstm.set_weights([start.lstms[0].kernel[...], start.lstms[0].recurrent_kernel[...], start.lstms[0].bias[...]])
    weights, biases = keras.Variable(start.weights[...]), keras.Variable(start.biases[...])
    variables = [embedding.embeddings, weights, biases, *lstm.trainable_weights]
    optimizer = keras.optimizers.Adam(global_clipnorm=10.0)
    optimizer.build(variables)
    carry = [tf.Variable(tf.zeros((BATCH_SIZE, config.hidden_size))) for _ in range(2)]

    @tf.function
    def update(inputs: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs, *new_carry = lstm(tf.nn.embedding_lookup(embedding.embeddings.value, inputs), initial_state=carry)
            hidden, classes = tf.reshape(outputs, (-1, config.hidden_size)), tf.reshape(labels, (-1, 1))
            num_sampled = min(NUM_SAMPLED, config.vocab_size)
            rows = (weights.value, biases.value, classes, hidden, num_sampled, config.vocab_size)
            loss = tf.reduce_mean(tf.nn.sampled_softmax_loss(*rows))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]))
        for variable, value in zip(carry, new_carry, strict=True):
            variable.assign(value)

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        optimizer.learning_rate = learning_rate
        update(tf.constant(inputs), tf.constant(labels, tf.int64))

    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        return perplexity(start, [variable.numpy() for variable in variables], tokens, max_tokens)

    return Trainer(step, evaluate)


def keras_trainer(config: jaxlm.ModelConfig) -> Trainer:
    """The question's model with Keras' full softmax, its initializers and Adam."""
    import keras

    import convert
    from convert.keras_models.builder import build

    model = build(config)
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy())

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        model.optimizer.learning_rate = learning_rate
        model.train_on_batch(inputs, labels)

    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        return jaxlm.evaluate(convert.from_keras(model), tokens, max_tokens=max_tokens).perplexity

    return Trainer(step, evaluate)


def perplexity(model: jaxlm.LanguageModel, arrays: Any, tokens: np.ndarray, max_tokens: int) -> float:
    """Returns the exact perplexity with the given embedding, softmax rows, biases and LSTM parameters."""
    lstm = model.lstms[0]
    params = (model.embedding, model.weights, model.biases, lstm.kernel, lstm.recurrent_kernel, lstm.bias)
    for param, array in zip(params, arrays, strict=True):
        param[...] = np.reshape(array, param.shape)
    return jaxlm.evaluate(model, tokens, max_tokens=max_tokens).perplexity


def run(method: Method, data: str, minutes: float, sizes: list[int], eval_tokens: int) -> tuple[int, float]:
    """Trains with one method, and returns how many words it read and the exact validation perplexity."""
    from flax import nnx

    from jaxlm.data.batches import train_batch
    from jaxlm.runs.directory import read_metrics
    from jaxlm.runs.schedule import learning_rate_schedule

    corpus = jaxlm.load_corpus(data)
    config = jaxlm.ModelConfig(len(corpus.vocabulary), *sizes)
    if method == "jaxlm":
        schedule = jaxlm.ScheduleConfig(minutes=minutes, eval_every=10**9, eval_tokens=eval_tokens)
        with tempfile.TemporaryDirectory() as directory:
            result = jaxlm.train(corpus, Path(directory) / "run", config, schedule=schedule, progress=False)
            steps = read_metrics(Path(directory) / "run")[-1]["step"]
        assert result is not None
        return steps * jaxlm.TrainConfig.batch_size * jaxlm.TrainConfig.sequence_length, result.perplexity
    if method == "keras-full":
        trainer = keras_trainer(config)
    else:
        vectors = jaxlm.word_vectors(corpus.train, config.vocab_size, config.embedding_size)
        start = jaxlm.LanguageModel(config, corpus.log_unigram, vectors, rngs=nnx.Rngs(1))
        trainer = tf_trainer(start) if method == "tf-sampled" else torch_trainer(start, method == "torch-adaptive")
    rate_at = learning_rate_schedule(jaxlm.ScheduleConfig(warmup_steps=0), total_steps=10_000)
    begin, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - begin) / (60 * minutes)) < 1:
        batch = train_batch(corpus.train, step, BATCH_SIZE, SEQUENCE_LENGTH)
        trainer.step(batch.inputs, batch.labels, float(rate_at(int(10_000 * share))))
        step += 1
    return step * BATCH_SIZE * SEQUENCE_LENGTH, trainer.evaluate(corpus.valid, eval_tokens)


def plot(path: Path, results: dict[tuple[str, float], tuple[int, float]]) -> None:
    """Draws perplexity against minutes, a line for each method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, method in enumerate(dict.fromkeys(method for method, _ in results)):
        points = sorted((minutes, value) for (name, minutes), (_, value) in results.items() if name == method)
        style = "-" if number % 2 == 0 else "--"  # so that of two lines in the same place both are seen
        axes.plot(*zip(*points, strict=True), style, marker="o", label=f"{method}: {points[-1][1]:,.0f}")
    axes.set(xlabel="minutes of training", ylabel="exact validation perplexity", yscale="log")
    axes.set_xticks(sorted({minutes for _, minutes in results}))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks([100, 200, 500, 1000, 2000, 5000, 10_000], minor=False)
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="method: at the end", frameon=False)
    figure.savefig(path, dpi=150)


def main(
    data: tyro.conf.Positional[Path],
    methods: tuple[Method, ...] = ("jaxlm", "torch-sampled", "torch-adaptive", "tf-sampled", "keras-full"),
    minutes: tuple[float, ...] = (2.0, 5.0),
    embedding_size: int = 256,
    hidden_size: int = 1024,
    eval_tokens: int = 20_000,
    plot_file: Path | None = None,
) -> None:
    """Prints a table.

    Args:
      data: Directory made by `jaxlm prepare`.
      methods: What to compare.
      minutes: Lengths of the trainings, not counting evaluation.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      eval_tokens: Words of the validation text to evaluate on.
      plot_file: A PNG file to write.
    """
    results = {}
    for length in minutes:
        for method in methods:
            arguments = [method, str(data), length, [embedding_size, hidden_size], eval_tokens]
            command = [sys.executable, __file__, "run", json.dumps(arguments)]
            print(f"{method}, {length:g} minutes", file=sys.stderr, flush=True)
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[method, length] = json.loads(output.splitlines()[-1])
    print(machine("torch", "tensorflow"))
    print(f"exact validation perplexity on {eval_tokens:,} words, and words read")
    header = ["method", *(f"{length:g} minutes" for length in minutes)]
    cells = {name: f"{value:.1f} ({words / 1e3:,.0f} thousand)" for name, (words, value) in results.items()}
    print_table(header, [[method, *(cells[method, length] for length in minutes)] for method in methods])
    if plot_file:
        plot(plot_file, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(run(*json.loads(sys.argv[2]))))
    else:
        tyro.cli(main)
