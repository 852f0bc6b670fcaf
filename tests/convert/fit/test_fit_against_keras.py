"""`fit_keras` against Keras' own `fit`. With every class a candidate, drawn uniformly, sampled softmax is exact."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
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
    "sum, ignored class": {
        "loss": {"reduction": "sum", "ignore_class": -1},
        "data": with_ignored(*sequences()),
        "rate": 0.02,
    },
    "clipnorm": {"data": distinct(), "optimizer": {"clipnorm": 0.01}},
    "global clipnorm": {"data": distinct(), "optimizer": {"global_clipnorm": 0.02}},
    "momentum of 0": {"optimizer": {"momentum": 0.0}},
    "frozen embedding, clipped": {"frozen": True, "data": distinct(), "optimizer": {"global_clipnorm": 0.02}},
    "Adagrad, schedule": {
        "data": distinct(),
        "kind": "Adagrad",
        "optimizer": {"initial_accumulator_value": 0.01},
        "rate": 0.05,
        "schedule": True,
    },
    "moving averages": {"optimizer": {"use_ema": True, "ema_momentum": 0.7}, "calls": 2},
    "moving averages in place of weights": {
        "data": distinct(),
        "kind": "Adagrad",
        "optimizer": {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 4},
    },
    "accumulated gradients": {  # a group ends in the second call; a callback reads and sets weights in between
        "optimizer": {"global_clipnorm": 0.02, "gradient_accumulation_steps": 4},
        "calls": 2,
        "fit": {"callbacks": [keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]},
    },
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
    for _ in range(case.get("calls", 1)):
        history = fit(model, x, y, **arguments)
    return model, history


def assert_same_training(ours, theirs, start):
    """Checks weights by their increments, and the histories."""
    (our_model, our_history), (their_model, their_history) = ours, theirs
    np.testing.assert_allclose(our_history.history["loss"], their_history.history["loss"], rtol=2e-5)
    for before, one, other in zip(start, our_model.get_weights(), their_model.get_weights(), strict=True):
        moved, should = one - before, other - before
        np.testing.assert_allclose(moved, should, rtol=2e-3, atol=1e-5 * max(np.abs(should).max(), 0.1))


QUICK = {  # with Keras 3; the others are each much like one of them
    "plain",
    "last word",
    "padding anywhere",
    "padding and weights",
    "sum, ignored class",
    "clipnorm",
    "frozen embedding, clipped",
    "Adagrad, schedule",
    "moving averages",
    "moving averages in place of weights",
    "accumulated gradients",
    "stateful",
    "tf.data with weights",
}


@pytest.mark.parametrize(
    ("name", "module"),
    quick_if(
        lambda name, module: name in (QUICK if module == "keras" else ("plain", "padding left")),
        (case for case in itertools.product(CASES, MODULES) if case != ("accumulated gradients", "tf_keras")),
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
    assert int(ours[0].optimizer._iterations) == int(theirs[0].optimizer._iterations)
    if "accumulated" in name:
        ours, theirs = (model.optimizer._accumulated_gradients for model, _ in (ours, theirs))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.array(one), np.array(other), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_a_dataset_of_keras_is_read_as_keras_reads_it(kind, steps):
    base = keras.utils.PyDataset if kind == "keras" else tf_keras.utils.Sequence

    class Batches(base):
        hooks = ()

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return tuple(array[index * 4 : index * 4 + 4] for array in sequences())

        def on_epoch_begin(self):
            self.hooks += ("begin",)

        def on_epoch_end(self):
            self.hooks += ("end",)

    dataset, module = Batches(), MODULES[kind]
    case = {"dataset": lambda: dataset, "fit": {"steps_per_epoch": steps}}
    ours = compile_and_fit(module, case, lambda model, x, y, **arguments: fit_keras(model, x, y, **arguments, **EXACT))
    assert dataset.hooks == ("begin", "end") * 3  # and once to count the labels
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
