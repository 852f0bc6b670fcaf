"""Trains a Keras model in JAX with a sampled softmax, then goes on with it in Keras.

jaxlm prepare train.txt --out data && python examples/train_keras_model.py data
"""

import sys
from pathlib import Path

import keras
from flax import nnx

import convert
import jaxlm

corpus = jaxlm.load_corpus(Path(sys.argv[1]))
tokens, V = corpus.train, len(corpus.vocabulary)
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 300

model = keras.Sequential(
    [
        keras.layers.Embedding(V, 256),
        keras.layers.LSTM(1024, return_sequences=True),
        keras.layers.Dense(V, activation="softmax"),
    ]
)
model.build((None, None))

# convert.from_keras(model) has the Keras model's weights; one that starts at what the words' counts say learns faster
shape = jaxlm.ModelConfig(V, model.layers[0].output_dim, model.layers[1].units)
vectors = jaxlm.word_vectors(tokens, V, shape.embedding_size)
start = jaxlm.LanguageModel(shape, corpus.vocabulary.log_unigram, vectors, rngs=nnx.Rngs(0))
config = jaxlm.TrainConfig(num_sampled=min(1000, V), steps=STEPS)
state = jaxlm.TrainState.create(start, config)
for step in range(STEPS):
    inputs, labels, _ = jaxlm.train_batch(tokens, step, config.batch_size, config.sequence_length)
    state, loss = jaxlm.train_step(state, inputs, labels, jaxlm.learning_rate(config, step, STEPS))
convert.load_into_keras(state.model, model)

print("jaxlm, exact loss:", jaxlm.evaluate(state.model, corpus.valid, max_tokens=2000).loss)
probabilities = model.predict(corpus.valid[None, :20])  # [1, 20, V]
for ids, rows in zip(corpus.valid[1:20], probabilities[0], strict=False):
    print(f"{corpus.vocabulary.words[ids]:>16}: {rows[ids]:.2%}, expected {corpus.vocabulary.words[rows.argmax()]}")
