"""Metrics of `fit_keras` on validation data against `model.evaluate`."""

import functools

import keras
import numpy as np
import pytest
from convert_helpers import run_python
from fit_helpers import EXACT, MODULES, QUIET, last_labels, make, one_hot, padded, sequences, weights, with_ignored

from convert import fit_keras
from convert.fit.metrics import LabelStatistics, Means, Metric
from jaxlm.errors import InputError


class Perplexity(keras.metrics.Metric):
    """The perplexity of keras_hub: the exponential of the mean, over the examples, of the loss per word of a batch."""

    __module__ = "keras_hub.metrics"

    def __init__(self, from_logits=False, mask_token_id=None, name="perplexity"):
        super().__init__(name=name)
        self.from_logits, self.mask_token_id = from_logits, mask_token_id
        self.total, self.count = (self.add_variable((), "zeros") for _ in range(2))

    def update_state(self, y_true, y_pred, sample_weight=None):
        loss, ops = keras.losses.SparseCategoricalCrossentropy(self.from_logits, reduction="sum"), keras.ops
        weight = ops.ones(ops.shape(y_true)) if sample_weight is None else ops.cast(sample_weight, "float32")
        if self.mask_token_id is not None:
            weight = weight * ops.cast(y_true != self.mask_token_id, "float32")
        size = ops.cast(ops.shape(y_true)[0], "float32")
        self.total.assign_add(size * loss(y_true, y_pred, sample_weight=weight) / ops.sum(weight))
        self.count.assign_add(size)

    def result(self):
        return keras.ops.exp(self.total / self.count)

    def reset_state(self):
        self.total.assign(0.0), self.count.assign(0.0)

    def get_config(self):
        return super().get_config() | {"from_logits": self.from_logits, "mask_token_id": self.mask_token_id}


def metrics_of(module, case):
    """Returns the metrics of a case: those of Keras, and for labels of words that of keras_hub."""
    model, sparse = case.get("model", {}), case.get("data", sequences())[1].ndim < 3
    kinds, prefix, logits = module.metrics, "Sparse" if sparse else "", model.get("logits", False)
    top_k, entropy = (
        getattr(kinds, f"{prefix}{kind}") for kind in ("TopKCategoricalAccuracy", "CategoricalCrossentropy")
    )
    metrics = ["accuracy", top_k(k=3), top_k(k=1, name="best")]
    weighted = [f"{'sparse_' if sparse else ''}categorical_accuracy"]
    if case.get("loss", {}).get("ignore_class") == -1:  # which a cross-entropy cannot read
        return {"metrics": metrics, "weighted_metrics": weighted}
    if module is keras and sparse and not model.get("last_only"):
        weighted += ["accuracy", Perplexity(logits), Perplexity(logits, 3, name="of_most")]
    return {"metrics": [*metrics, entropy(from_logits=logits)], "weighted_metrics": weighted}


CASES = {  # the model, the data, its weights, and the loss
    "plain": {},
    "logits": {"model": {"logits": True}, "loss": {"from_logits": True}},
    "weights of words": {"weights": weights(10, 6)},
    "padding": {"model": {"mask_zero": True}, "data": padded("left")},
    "padding anywhere, weights": {"model": {"mask_zero": True}, "data": padded("anywhere"), "weights": weights(10, 6)},
    "ignored class outside": {"data": with_ignored(*sequences()), "loss": {"ignore_class": -1}},
    "ignored class": {"loss": {"ignore_class": 3}},
    "last word": {"model": {"last_only": True}, "data": last_labels(*sequences()), "weights": weights(10)},
    "one-hot": {"data": one_hot(*sequences())},
}


def both(module, case):
    """Returns the logs of validation, and those of `model.evaluate`, after a step of training."""
    x, y = case.get("data", sequences())
    if module is MODULES["tf_keras"] and case is CASES["ignored class outside"]:
        x, y = x[:8], y[:8]  # a batch whose labels are all ignored is NaN there
    data = (x, y, case["weights"]) if "weights" in case else (x, y)
    sparse = y.ndim < 3
    loss = getattr(module.losses, f"{'Sparse' if sparse else ''}CategoricalCrossentropy")(**case.get("loss", {}))
    model = make(module, **case.get("model", {}))
    model.compile(module.optimizers.SGD(0.1), loss, **metrics_of(module, case), run_eagerly=True)
    with pytest.warns(UserWarning, match="metrics on validation data, not on training data"):
        history = fit_keras(model, x, y, **QUIET, **EXACT, validation_data=data).history
    found = {name.removeprefix("val_"): values[0] for name, values in history.items() if name != "loss"}
    arguments = {"sample_weight": case.get("weights"), "batch_size": 4, "verbose": 0, "return_dict": True}
    return found, model.evaluate(x, y, **arguments)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("module", ["keras", pytest.param("tf_keras", marks=pytest.mark.exhaustive)])
def test_metrics_are_those_of_evaluate(name, module):
    found, expected = both(MODULES[module], CASES[name])
    assert found.keys() == expected.keys()
    for each, value in expected.items():
        np.testing.assert_allclose(found[each], value, rtol=2e-5, err_msg=each)


def test_callbacks_monitor_metrics_and_others_are_named():
    @keras.saving.register_keras_serializable()
    def surprise(y_true, y_pred):
        return keras.ops.max(y_pred, axis=-1)

    def perplexity(y_true, y_pred):  # not Keras', in spite of its name
        return surprise(y_true, y_pred)

    class TopKCategoricalAccuracy(keras.metrics.MeanMetricWrapper):
        pass

    own = [surprise, perplexity, functools.partial(surprise), TopKCategoricalAccuracy(surprise, name="best")]
    (x, y), model = sequences(), make()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["acc", *own, keras.metrics.Accuracy()])
    stop = keras.callbacks.EarlyStopping("val_acc", patience=0, min_delta=2)
    arguments = QUIET | {"epochs": 5, "validation_data": (x, y), "callbacks": stop}
    with pytest.warns(
        UserWarning, match="not surprise, perplexity, partial, best, accuracy without .*: call model.evaluate"
    ):
        history = fit_keras(model, x, y, **arguments).history
    assert history.keys() == {"loss", "val_loss", "val_acc"} and len(history["loss"]) == 2
    with pytest.raises(InputError, match="'val_acc', which fit_keras does not log"):
        fit_keras(model, x, y, **arguments | {"validation_data": None})


def test_a_perplexity_beyond_the_largest_float_is_infinite():
    means, one = Means((Metric("perplexity", None, False, is_perplexity=True),)), np.ones((1, 1))
    means.add(800.0, 1, LabelStatistics(-800 * one, one, one, one.astype(bool), one.astype(bool), one))
    assert means.logs() == {"loss": 800.0, "perplexity": np.inf}


ANY_BODY = """
import warnings; warnings.simplefilter("ignore")
import keras, numpy as np, convert
L, V, rng = keras.layers, 23, np.random.default_rng(0)
model = keras.Sequential([keras.Input((6,)), L.Embedding(V, 5, mask_zero=True), L.GRU(7, return_sequences=True),
                          L.TimeDistributed(L.Dense(V, activation="softmax"))])
x, y, w = rng.integers(0, V, (10, 6)), rng.integers(0, V, (10, 6)), rng.random((10, 6)).astype("float32")
model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=["accuracy",
              keras.metrics.SparseTopKCategoricalAccuracy(7), keras.metrics.SparseCategoricalCrossentropy()])
quiet = {"batch_size": 4, "verbose": 0}
found = convert.fit_keras(model, x, y, **quiet, validation_data=(x, y, w), num_sampled=V).history
for name, value in model.evaluate(x, y, sample_weight=w, **quiet, return_dict=True).items():
    np.testing.assert_allclose(found["val_" + name][0], value, rtol=2e-5, err_msg=name)
"""


@pytest.mark.slow
def test_metrics_of_any_body():
    result = run_python("-c", ANY_BODY, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr[-3000:]
