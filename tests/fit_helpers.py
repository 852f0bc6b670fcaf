"""Models and sequences that the tests of `fit_keras` share."""

import keras
import numpy as np
import tf_keras

V = 23
EXACT = {"num_sampled": V, "sampler": "uniform", "compute_dtype": "float32"}
EAGER = {"run_eagerly": True}  # a few small steps do not repay a graph
QUIET = {"batch_size": 4, "verbose": 0}
MODULES = {"keras": keras, "tf_keras": tf_keras}
OPTIMIZERS = ["Adam", "Adagrad", "SGD"]


def make(module=keras, mask_zero=False, last_only=False, stateful=False, logits=False):
    """Makes a model of odd sizes with random weights and biases."""
    layers = module.layers
    shape = {"batch_shape" if module is keras else "batch_input_shape": (4 if stateful else None, None)}
    model = module.Sequential(
        [
            layers.InputLayer(**shape),
            layers.Embedding(V, 5, mask_zero=mask_zero),
            layers.LSTM(7, return_sequences=True, stateful=stateful),
            layers.LSTM(7, return_sequences=not last_only, stateful=stateful),
            layers.Dense(V, activation=None if logits else "softmax"),
        ]
    )
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=array.shape).astype(np.float32) for array in model.get_weights()])
    return model


def sequences(count=10, length=6):
    text = np.random.default_rng(0).integers(1, V, (count, length + 1))
    return text[:, :-1], text[:, 1:]


def padded(where):
    """Returns sequences in which 0 is padding: at the left, at the right, or anywhere."""
    x, y = sequences()
    rng = np.random.default_rng(1)
    real, position = rng.integers(1, 7, (10, 1)), np.arange(6)[None]
    anywhere = rng.random(x.shape) < 0.6
    mask = {"left": position >= 6 - real, "right": position < real, "anywhere": anywhere}[where]
    mask[:, -1] |= ~mask.any(axis=1)
    return np.where(mask, x, 0), np.where(mask, y, 0)


def distinct():
    """Returns batches in which no id is read twice: TensorFlow clips and squares each occurrence by itself."""
    text = np.concatenate([np.random.default_rng(i).permutation(V)[:20].reshape(4, 5) for i in range(3)])
    return text, text[:, ::-1]


def weights(*shape):
    return np.random.default_rng(4).random(shape).astype(np.float32)


def with_ignored(x, y):
    return x, np.where(weights(*y.shape) < 0.3, -1, y)


def one_hot(x, y):
    return x, np.eye(V, dtype=np.float32)[y]


def last_labels(x, y):
    return x, y[:, -1]
