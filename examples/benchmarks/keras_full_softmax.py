"""Trains the same model in Keras with its full softmax for a given time, to compare jaxlm with.

    python examples/benchmarks/keras_full_softmax.py data --minutes 5

Embedding -> LSTM -> Dense softmax, with Adam, Keras' defaults and the same batches as `jaxlm train`. jaxlm then
evaluates the weights exactly, on the same words as its own models.
"""

import time
from pathlib import Path

import keras
import tyro
from measure import machine, print_table

import jaxlm
from convert.keras_builder import build
from convert.weights import from_keras_weights, model_from_weights
from jaxlm.batches import train_batch


def main(
    data: tyro.conf.Positional[Path],
    /,
    minutes: float = 5.0,
    batch_size: int = 32,
    sequence_length: int = 35,
    embedding_size: int = 256,
    hidden_size: int = 1024,
    eval_tokens: int = 20_000,
) -> None:
    """Prints steps, words/s and exact validation perplexity.

    Args:
      data: Directory made by `jaxlm prepare`.
      minutes: Length of the training, not counting evaluation.
      batch_size: Number of contiguous streams of text.
      sequence_length: Time steps of a batch.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      eval_tokens: Words of the validation text to evaluate on.
    """
    corpus = jaxlm.load_corpus(data)
    config = jaxlm.ModelConfig(len(corpus.vocabulary), embedding_size, hidden_size)
    model = build(config)
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy())
    start, step, loss = time.perf_counter(), 0, float("nan")
    while time.perf_counter() - start < 60 * minutes:
        batch = train_batch(corpus.train, step, batch_size, sequence_length)
        loss = float(model.train_on_batch(batch.inputs, batch.labels))
        step += 1
    seconds = time.perf_counter() - start
    weights = from_keras_weights({variable.path: variable.numpy() for variable in model.weights}, config)
    language_model = model_from_weights(weights, config)
    del model
    result = jaxlm.evaluate(language_model, corpus.valid, max_tokens=eval_tokens, progress=True)
    print(f"{machine('keras')}\nKeras, full softmax; exact validation perplexity on {result.num_tokens:,} words")
    speed = step * batch_size * sequence_length / seconds
    row = [f"{seconds / 60:.1f}", step, f"{speed:,.0f}", f"{loss:.3f}", f"{result.perplexity:.1f}"]
    print_table(["minutes", "steps", "words/s", "last loss", "exact perplexity"], [row])


if __name__ == "__main__":
    tyro.cli(main)
