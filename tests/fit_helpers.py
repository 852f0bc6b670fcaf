"""Models and sequences that the tests of `fit_keras` share."""

import keras
import numpy as np
import tf_keras
from convert_helpers import run_python

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
    ignored = weights(*y.shape) < 0.3
    ignored[8:] = True  # a whole batch, the last one of 4
    return x, np.where(ignored, -1, y)


def one_hot(x, y):
    return x, np.eye(V, dtype=np.float32)[y]


def last_labels(x, y):
    return x, y[:, -1]


PRELUDE = """
import warnings; warnings.simplefilter("ignore")
import keras, numpy as np, convert
L, V, rng = keras.layers, 23, np.random.default_rng(0)
EXACT = {"num_sampled": V, "sampler": "uniform", "compute_dtype": "float32"}

def embed(ids, **settings): return L.Embedding(V, 5, **settings)(ids)
def head(x): return L.Dense(V, activation="softmax")(x)
def simple(body, **settings):
    ids = keras.Input((6,), dtype="int32")
    return keras.Model(ids, head(body(embed(ids, **settings))))

def data(model, zeros=False):
    inputs = [rng.integers(0 if zeros else 1, V, (10, 6)) if "int" in tensor.dtype else
              rng.random((10, tensor.shape[1])).astype("float32") for tensor in model.inputs]
    if zeros: inputs[0][:, :2] = 0
    named = {tensor.name: array for tensor, array in zip(model.inputs, inputs)}
    inputs = named if "price" in named else inputs if len(inputs) > 1 else inputs[0]
    return inputs, rng.integers(0, V, (10, *model.outputs[0].shape[1:-1]))

def start(model):
    for variable in model.weights:
        if "float" in variable.dtype and "moving" not in variable.path:
            variable.assign(0.5 * rng.normal(size=variable.shape))
    return model.get_weights()

def compare(name, model, optimizer, rtol=2e-3, zeros=False, **settings):
    (x, y), weights, results = data(model, zeros), start(model), []
    for fit in (model.fit, lambda *a, **k: convert.fit_keras(model, *a, **k, **EXACT)):
        model.set_weights(weights)
        model.compile(type(optimizer).from_config(optimizer.get_config()), "sparse_categorical_crossentropy")
        history = fit(x, y, **{"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0} | settings)
        results.append((model.get_weights(), history.history["loss"], int(model.optimizer.iterations)))
    if all(type(layer).__module__.startswith("keras") for layer in model.layers): model.get_config()  # saving needs it
    (theirs, their_loss, steps), (ours, our_loss, our_steps) = results
    assert steps == our_steps, (name, steps, our_steps)
    np.testing.assert_allclose(our_loss, their_loss, rtol=1e-4, err_msg=name)
    for variable, one, other, before in zip(model.weights, ours, theirs, weights, strict=True):
        moved = np.abs(other - before).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(moved, 1e-2), err_msg=f"{name} {variable.path}")
    print("equal:", name, type(optimizer).__name__)
"""


def run_under_jax(code: str) -> str:
    """Runs code after `PRELUDE` with Keras' JAX backend, and returns its output."""
    result = run_python("-c", PRELUDE + code, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
