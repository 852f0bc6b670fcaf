"""Trains a Keras model in JAX with a sampled softmax, then goes on with it in Keras.

jaxlm prepare train.txt --out data && python examples/train_keras_model.py data
"""

import sys
from pathlib import Path

import keras

import convert
import jaxlm

corpus = jaxlm.load_corpus(Path(sys.argv[1]))
tokens, V = corpus.parts["train"], len(corpus.vocabulary)
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 300

model = keras.Sequential(
    [
        keras.layers.Embedding(V, 256),
        keras.layers.LSTM(1024, return_sequences=True),
        keras.layers.Dense(V, activation="softmax"),
    ]
)
model.build((None, None))
model.layers[-1].bias.assign(corpus.vocabulary.log_unigram)  # the largest single gain at a large vocabulary

config = jaxlm.TrainConfig(num_sampled=min(1000, V), steps=STEPS)
state = jaxlm.TrainState.create(convert.from_keras(model), config)
for step in range(STEPS):
    inputs, labels, _ = jaxlm.train_batch(tokens, step, config.batch_size, config.sequence_length)
    state, loss = jaxlm.train_step(state, inputs, labels, jaxlm.learning_rate(config, step, STEPS))
convert.load_into_keras(state.model, model)

print("jaxlm, exact loss:", jaxlm.evaluate(state.model, corpus.parts["valid"], max_tokens=2000).loss)
probabilities = model.predict(corpus.parts["valid"][None, :20])  # [1, 20, V]
for ids, rows in zip(corpus.parts["valid"][1:20], probabilities[0], strict=False):
    print(f"{corpus.vocabulary.words[ids]:>16}: {rows[ids]:.2%}, expected {corpus.vocabulary.words[rows.argmax()]}")
