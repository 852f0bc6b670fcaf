"""Trains a Keras model in JAX with sampled softmax, then predicts with it in Keras.

jaxlm prepare train.txt --out data && python examples/train_keras_model.py data
"""

import sys

import keras

import convert
import jaxlm

corpus = jaxlm.load_corpus(sys.argv[1])
vocab_size = len(corpus.vocabulary)
num_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 300

model = keras.Sequential(
    [
        keras.layers.Embedding(vocab_size, 256),
        keras.layers.LSTM(1024, return_sequences=True),
        keras.layers.Dense(vocab_size, activation="softmax"),
    ]
)
model.build((None, None))

# a new state of the same shape; TrainState.create(convert.from_keras(model), ...) would continue from the Keras
# model's weights instead, but starts worse if those are random
model_config = jaxlm.ModelConfig(
    vocab_size, embedding_size=model.layers[0].output_dim, hidden_size=model.layers[1].units
)
train_config = jaxlm.TrainConfig(num_sampled=min(1000, vocab_size))
state = jaxlm.TrainState.from_corpus(corpus, model_config, train_config)
learning_rate = jaxlm.learning_rate_schedule(jaxlm.ScheduleConfig(learning_rate=3e-3), num_steps)
for step, batch in enumerate(jaxlm.train_batches(corpus.train, train_config, num_steps)):
    state, loss = jaxlm.train_step(state, batch, learning_rate(step))
convert.load_into_keras(state.model, model)

print("jaxlm, exact loss:", jaxlm.evaluate(state.model, corpus.valid, max_tokens=2000).loss)
probabilities = model.predict(corpus.valid[None, :20])  # [1, 20, vocab_size]
for word, row in zip(corpus.valid[1:20], probabilities[0], strict=False):
    print(f"{corpus.vocabulary.words[word]:>16}: {row[word]:.2%}, expected {corpus.vocabulary.words[row.argmax()]}")
