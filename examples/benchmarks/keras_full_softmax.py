"""Trains the same model in Keras with its full softmax for a given time: what jaxlm is compared with.

    python examples/benchmarks/keras_full_softmax.py data --minutes 5

Embedding -> LSTM -> Dense softmax, Adam, Keras' defaults, the same batches as `jaxlm train`. The
weights then go into jaxlm for the same exact evaluation on the same words.
"""

import time
from pathlib import Path

import keras
import tyro

import jaxlm
from convert.keras_model import build
from convert.weights import from_keras
from convert.weights import language_model as into_jaxlm


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
      data: Directory that `jaxlm prepare` made.
      minutes: Length of the training, evaluation not counted.
      batch_size: Streams of text.
      sequence_length: Time steps of a batch.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      eval_tokens: Words of the validation text to evaluate on.
    """
    corpus = jaxlm.load_corpus(data)
    config = jaxlm.ModelConfig(len(corpus.vocabulary), embedding_size, hidden_size)
    model = build(config)
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy())
    start, step = time.perf_counter(), 0
    while time.perf_counter() - start < 60 * minutes:
        inputs, labels, _ = jaxlm.train_batch(corpus.train, step, batch_size, sequence_length)
        loss = model.train_on_batch(inputs, labels)
        step += 1
    seconds = time.perf_counter() - start
    weights = from_keras({variable.path: variable.numpy() for variable in model.weights}, config)
    language_model = into_jaxlm(weights, config)
    del model
    result = jaxlm.evaluate(language_model, corpus.valid, max_tokens=eval_tokens, progress=True)
    print(
        f"Keras {keras.__version__} full softmax: {step} steps in {seconds / 60:.1f} minutes,"
        f" {step * batch_size * sequence_length / seconds:,.0f} words/s, last loss {float(loss):.3f},"
        f" exact validation perplexity {result.perplexity:.1f} on {result.num_tokens:,} words"
    )


if __name__ == "__main__":
    tyro.cli(main)
