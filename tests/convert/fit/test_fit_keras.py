"""`fit_keras` against Keras' own `fit`. With every class a candidate, drawn uniformly, sampled softmax is exact."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from convert_helpers import run_python
from fit_helpers import (
    EAGER,
    EXACT,
    MODULES,
    OPTIMIZERS,
    QUIET,
    V,
    distinct,
    last_labels,
    make,
    one_hot,
    padded,
    sequences,
    weights,
    with_ignored,
)
from helpers import quick_if

from convert import fit_keras

CASES = {  # the model, the data, and what both are compiled and called with
    "plain": {},
    "logits": {"model": {"logits": True}, "loss": {"from_logits": True}},
    "one sequence at a time": {"fit": {"batch_size": 1}},
    "one-hot": {"data": one_hot(*sequences()), "loss": "categorical_crossentropy"},
    "last word": {"model": {"last_only": True}, "data": last_labels(*sequences())},
    "last word, one-hot": {
        "model": {"last_only": True},
        "data": one_hot(*last_labels(*sequences())),
        "loss": "categorical_crossentropy",
    },
    "padding left": {"model": {"mask_zero": True}, "data": padded("left")},
    "padding right": {"model": {"mask_zero": True}, "data": padded("right")},
    "padding anywhere": {"model": {"mask_zero": True}, "data": padded("anywhere")},
    "padding and weights": {
        "model": {"mask_zero": True},
        "data": padded("left"),
        "fit": {"sample_weight": weights(10, 6)},
    },
    "padding, last word": {"model": {"mask_zero": True, "last_only": True}, "data": last_labels(*padded("left"))},
    "padding right, last word": {
        "model": {"mask_zero": True, "last_only": True},
        "data": (padded("right")[0], sequences()[1][:, -1]),
    },
    "weights of words": {"fit": {"sample_weight": weights(10, 6)}},
    "weights of sequences": {  # of shape [N], Keras 3 fails on them
        "fit": {"sample_weight": weights(10)},
        "keras_fit": {"sample_weight": np.repeat(weights(10)[:, None], 6, axis=1)},
    },
    "weights of last words": {
        "model": {"last_only": True},
        "data": last_labels(*sequences()),
        "fit": {"sample_weight": weights(10)},
    },
    "sum": {"loss": {"reduction": "sum"}, "rate": 0.02},
    "ignored class": {"loss": {"ignore_class": -1}, "data": with_ignored(*sequences())},
    "clipnorm": {"data": distinct(), "optimizer": {"clipnorm": 0.01}},
    "global clipnorm": {"data": distinct(), "optimizer": {"global_clipnorm": 0.02}},
    "momentum of 0": {"optimizer": {"momentum": 0.0}},
    "frozen embedding": {"frozen": True},
    "frozen embedding, clipped": {"frozen": True, "data": distinct(), "optimizer": {"global_clipnorm": 0.02}},
    "Adagrad": {"data": distinct(), "kind": "Adagrad", "optimizer": {"initial_accumulator_value": 0.01}, "rate": 0.05},
    "schedule": {"schedule": True},
    "stateful": {"model": {"stateful": True}, "data": sequences(12)},
    "floats": {"data": tuple(array.astype(np.float32) for array in sequences())},
    "tf.data": {"dataset": lambda: tf.data.Dataset.from_tensor_slices(sequences()).batch(4)},
    "tf.data with weights": {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices((*sequences(), weights(10, 6))).batch(4)
    },
}


def compile_and_fit(module, case, fit):
    model = make(module, **case.get("model", {}))
    model.layers[0].trainable = not case.get("frozen", False)
    rate = case.get("rate", 0.3)
    if case.get("schedule"):
        rate = module.optimizers.schedules.ExponentialDecay(rate, 2, 0.5)
    optimizer = getattr(module.optimizers, case.get("kind", "SGD"))(rate, **case.get("optimizer", {}))
    loss = case.get("loss", "sparse_categorical_crossentropy")
    loss = module.losses.SparseCategoricalCrossentropy(**loss) if isinstance(loss, dict) else loss
    model.compile(optimizer, loss, **EAGER)
    x, y = (case["dataset"](), None) if "dataset" in case else case.get("data", sequences())
    arguments = QUIET | {"shuffle": False, "epochs": 2} | case.get("fit", {})
    if y is None:
        arguments["batch_size"] = None
    history = fit(model, x, y, **arguments)
    return model, history


def assert_same_training(ours, theirs, start):
    """Checks weights by their increments, and the histories."""
    (our_model, our_history), (their_model, their_history) = ours, theirs
    np.testing.assert_allclose(our_history.history["loss"], their_history.history["loss"], rtol=2e-5)
    for before, one, other in zip(start, our_model.get_weights(), their_model.get_weights(), strict=True):
        moved, should = one - before, other - before
        np.testing.assert_allclose(moved, should, rtol=2e-3, atol=1e-5 * max(np.abs(should).max(), 0.1))


QUICK = {"plain", "padding left"}  # with Keras 2, too
EXHAUSTIVE = {  # each is much like another one
    "logits",
    "one sequence at a time",
    "last word, one-hot",
    "padding right",
    "padding, last word",
    "weights of sequences",
    "weights of last words",
    "momentum of 0",
    "frozen embedding, clipped",
    "floats",
    "tf.data",
    "one-hot",
    "padding right, last word",
}


@pytest.mark.parametrize(
    ("name", "module"),
    quick_if(
        lambda name, module: name in QUICK or module == "keras" and name not in EXHAUSTIVE,
        itertools.product(CASES, MODULES),
    ),
)
def test_training_equals_keras_fit(name, module):
    case, module = CASES[name], MODULES[module]
    ours = compile_and_fit(module, case, lambda model, x, y, **arguments: fit_keras(model, x, y, **arguments, **EXACT))
    keras_fit = case.get("keras_fit", {})
    theirs = compile_and_fit(module, case, lambda model, x, y, **arguments: model.fit(x, y, **arguments | keras_fit))
    assert_same_training(ours, theirs, make(module, **case.get("model", {})).get_weights())
    if case.get("model", {}).get("stateful"):
        for one, other in zip(ours[0].layers[1:3], theirs[0].layers[1:3], strict=True):
            np.testing.assert_allclose(np.array(one.states), np.array(other.states), rtol=1e-4, atol=1e-5)
    assert int(ours[0].optimizer.iterations) == int(theirs[0].optimizer.iterations)


@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_a_dataset_of_keras_is_read_as_keras_reads_it(kind):
    base = keras.utils.PyDataset if kind == "keras" else tf_keras.utils.Sequence

    class Batches(base):
        epochs = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return tuple(array[index * 4 : index * 4 + 4] for array in sequences())

        def on_epoch_end(self):
            self.epochs += 1

    dataset, module = Batches(), MODULES[kind]
    case = {"dataset": lambda: dataset}
    ours = compile_and_fit(module, case, lambda model, x, y, **arguments: fit_keras(model, x, y, **arguments, **EXACT))
    assert dataset.epochs == 3  # and once to count the labels
    theirs = compile_and_fit(module, {}, lambda model, x, y, **arguments: model.fit(x, y, **arguments))
    assert_same_training(ours, theirs, make(module).get_weights())


@pytest.mark.parametrize(
    ("kind", "module"),
    quick_if(
        lambda kind, module: kind == "Adam" or (kind, module) == ("SGD", "keras"),
        itertools.product(OPTIMIZERS, MODULES),
    ),
)
def test_training_continues_with_the_optimizer_state(kind, module):
    """Two calls equal one, and Keras goes on as after its own steps. Each batch has every id once: lazy is dense."""
    module = MODULES[module]
    text = np.stack([np.random.default_rng(i).permutation(V) for i in range(2)])
    data, quiet = (text, text[:, ::-1]), {"batch_size": 1, "verbose": 0, "shuffle": False}

    def train(*fits):
        model = make(module)
        model.set_weights([0.3 * array for array in model.get_weights()])  # so that no gradient is as small as epsilon
        model.compile(getattr(module.optimizers, kind)(0.02), "sparse_categorical_crossentropy", **EAGER)
        for first, fit in enumerate(fits):
            fit(model, first)
        return model

    def ours(model, first, epochs=1):
        fit_keras(model, *data, **quiet, **EXACT, initial_epoch=first, epochs=first + epochs)

    def keras_fit(model, first):
        model.fit(*data, **quiet)

    twice, once = train(ours, ours), train(lambda model, first: ours(model, first, epochs=2))
    for one, other in zip(twice.get_weights(), once.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(twice.optimizer.iterations) == 4
    mixed, keras_alone = train(ours, keras_fit), train(keras_fit, keras_fit)
    start = train().get_weights()
    allowed = 0.02 if kind == "Adam" else 1e-4  # Adam's smallest gradients are as small as epsilon
    for before, one, other in zip(start, mixed.get_weights(), keras_alone.get_weights(), strict=True):
        assert np.linalg.norm(one - other) < allowed * np.linalg.norm(other - before)


@pytest.mark.parametrize("module", MODULES)
def test_val_loss_is_that_of_evaluate(module):
    model = make(MODULES[module])
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = sequences()
    history = fit_keras(model, x, y, num_sampled=5, **QUIET, validation_data=(x[:7], y[:7])).history
    np.testing.assert_allclose(history["val_loss"][-1], model.evaluate(x[:7], y[:7], verbose=0), rtol=1e-5)
    assert history["loss"][-1] < history["val_loss"][-1]  # the sampled one


@pytest.mark.parametrize(
    ("data", "weight", "reduction"),
    [
        (padded("left"), None, "sum_over_batch_size"),
        (sequences(), weights(10, 6), "sum_over_batch_size"),
        (padded("right"), None, "sum"),
    ],
)
def test_val_loss_is_that_of_evaluate_with_padding_weights_and_reductions(data, weight, reduction):
    model, (x, y) = make(mask_zero=True), data
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction=reduction))
    valid = (x, y) if weight is None else (x, y, weight)
    history = fit_keras(model, *sequences(), **QUIET, validation_data=valid).history
    expected = model.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0)
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-5)


def test_a_split_validates_on_the_last_examples():
    x, y = sequences()
    histories = []
    for arguments in ({"validation_split": 0.35}, {"validation_data": (x[6:], y[6:])}):
        model = make()
        model.compile("adam", "sparse_categorical_crossentropy")
        end = 10 if "validation_split" in arguments else 6
        histories.append(fit_keras(model, x[:end], y[:end], num_sampled=9, **QUIET, **arguments).history)
    assert histories[0] == histories[1]


def test_training_is_reproducible_and_shuffled():
    def train(**arguments):
        model = make()
        fit_keras(model, *sequences(), num_sampled=9, **QUIET, **arguments)
        return model.get_weights()[0]

    np.testing.assert_array_equal(train(), train())
    assert not np.array_equal(train(), train(shuffle=False))
    assert not np.array_equal(train(), train(seed=1))


def test_a_model_that_is_not_compiled_learns():
    model = make()
    x, y = np.tile(np.arange(5), (12, 2)), np.tile((np.arange(5) + 1) % 5, (12, 2))
    losses = fit_keras(model, x, y, epochs=60, **QUIET, validation_data=(x, y)).history["val_loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_the_offered_starts_are_better():
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.zipf(1.5, (200, 13)), V - 1)
    arguments = {"num_sampled": 5, "validation_data": (ids[:, :-1], ids[:, 1:]), "batch_size": 32, "verbose": 0}

    def first_loss(**start):
        model = make()
        model.compile(keras.optimizers.SGD(1e-6), "sparse_categorical_crossentropy")
        return fit_keras(model, ids[:, :-1], ids[:, 1:], **arguments, **start).history["val_loss"][0]

    counts = np.bincount(ids[:, 1:].ravel(), minlength=V)
    unigram = -np.log(counts / counts.sum(), where=counts > 0, out=np.zeros(V))[ids[:, 1:]].mean()
    both = first_loss(initial_biases="unigram", initial_embeddings="counts")
    assert both < first_loss(initial_biases="unigram") < first_loss()
    assert both < unigram + 0.3


X, Y = sequences()


def test_layers_that_are_not_trainable_stay_as_they_are():
    model = make()
    model.layers[1].trainable = False
    before = model.get_weights()
    model.compile("adam", "sparse_categorical_crossentropy")
    fit_keras(model, X, Y, **QUIET)
    frozen = [id(variable) for variable in model.layers[1].variables]
    for variable, old in zip(model.weights, before, strict=True):
        assert np.array_equal(old, np.array(variable)) == (id(variable) in frozen), variable.path


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ("mse", ["loss mse"]),
        (lambda y, p: keras.ops.mean(p), ["loss <lambda>"]),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), ["label_smoothing=0.1"]),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["from_logits=True"]),
    ],
)
def test_compiled_settings_without_effect_are_named(loss, named):
    model = make()
    model.compile("adam", loss, metrics=["accuracy"])
    with pytest.warns(UserWarning, match="fit_keras does not use") as warning:
        fit_keras(model, X, Y, **QUIET)
    for text in [*named, "metrics=['accuracy']"]:
        assert text in str(warning[0].message)


def test_the_loss_is_said_to_be_sampled(capsys):
    fit_keras(make(), X, Y, num_sampled=7, verbose=2)
    printed = capsys.readouterr().out
    assert "sampled softmax over 7 words" in printed
    assert "loss: " in printed


BACKEND = """
import keras, numpy as np, convert
layers = [keras.layers.Embedding(23, 5), keras.layers.LSTM(7, return_sequences=True), keras.layers.Dense(23)]
model = keras.Sequential([*layers, keras.layers.Softmax()])
model.build((None, 6))
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
class Copies(keras.callbacks.Callback):
    kept = []
    def on_epoch_end(self, epoch, logs):
        self.kept += [model.get_weights(), [weights.copy() for weights in model.get_weights()]]
text = np.random.default_rng(0).integers(0, 23, (40, 7))
x, y = text[:, :-1], text[:, 1:]
loss = convert.fit_keras(
    model, x, y, num_sampled=9, epochs=3, verbose=0, callbacks=[Copies()], validation_data=(x, y)
).history["val_loss"][-1]
for seen, copy in zip(Copies.kept[::2], Copies.kept[1::2]):
    assert all(map(np.array_equal, seen, copy))  # training went on in other memory
assert abs(model.evaluate(x, y, verbose=0) - loss) < 1e-4, (model.evaluate(x, y, verbose=0), loss)
assert int(model.optimizer.iterations) == 6
model.fit(x, y, verbose=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", quick_if(lambda backend: backend == "torch", [("jax",), ("torch",)]))
def test_every_backend_of_keras(backend):
    pytest.importorskip(backend)
    result = run_python("-c", BACKEND, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr
