"""Trains a Keras model with sampled softmax, in one call, and predicts with it in Keras.

jaxlm prepare train.txt --out data && python examples/train_keras_model.py data
"""

import sys

import keras

import convert
import jaxlm

corpus = jaxlm.load_corpus(sys.argv[1])  # any arrays of ids do: x [N, T], and y [N, T], the words that follow them
vocab_size, length = len(corpus.vocabulary), 35
num_sequences = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
train, valid = (
    tokens[: (tokens.size - 1) // length * length + 1][: num_sequences * length + 1]
    for tokens in (corpus.train, corpus.valid)
)
x, y = train[:-1].reshape(-1, length), train[1:].reshape(-1, length)
x_valid, y_valid = valid[:-1].reshape(-1, length)[:200], valid[1:].reshape(-1, length)[:200]

model = keras.Sequential(
    [
        keras.layers.Embedding(vocab_size, 256),
        keras.layers.LSTM(1024, return_sequences=True),
        keras.layers.Dense(vocab_size, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
convert.fit_keras(  # in place of model.fit
    model, x, y, validation_data=(x_valid, y_valid), initial_biases="unigram", initial_embeddings="counts"
)
print("loss by Keras:", model.evaluate(x_valid[:5], y_valid[:5], verbose=0))
for word, row in zip(y_valid[0], model.predict(x_valid[:1], verbose=0)[0], strict=True):
    print(f"{corpus.vocabulary.words[word]:>16}: {row[word]:.2%}, expected {corpus.vocabulary.words[row.argmax()]}")
