"""`fit_keras` by itself: its validation loss, its options, its messages, and every backend of Keras."""

import gc

import keras
import numpy as np
import pytest
from convert_helpers import run_python
from fit_helpers import (
    MODULES,
    QUIET,
    V,
    make,
    padded,
    sequences,
    weights,
)
from helpers import quick_if

from convert import fit_keras
from jaxlm.errors import InputError
from jaxlm.training.state import TrainState


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


def sparse_categorical_crossentropy(y, p):  # not Keras', in spite of its name
    return keras.ops.mean(p)


@pytest.mark.parametrize(
    ("loss", "logits", "named"),
    [
        ("mse", False, "loss mse"),
        (lambda y, p: keras.ops.mean(p), False, "loss <lambda>"),
        (sparse_categorical_crossentropy, False, "loss sparse_categorical_crossentropy"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), False, "from_logits=True"),
        (keras.losses.SparseCategoricalCrossentropy(), True, "from_logits=False"),
        ("sparse_categorical_crossentropy", True, "from_logits=False"),
        (keras.losses.sparse_categorical_crossentropy, True, "from_logits=False"),
    ],
)
def test_compiled_settings_without_effect_are_named(loss, logits, named):
    model = make(logits=logits)
    model.compile("adam", loss, loss_weights=[2.0])
    with pytest.warns(UserWarning, match=rf"fit_keras does not use: {named}.*, loss_weights=\[2.0\]"):
        fit_keras(model, X, Y, **QUIET)


@pytest.mark.parametrize(
    ("module", "method"),
    [("keras", "call"), ("keras", "test_step"), ("tf_keras", "train_step"), ("tf_keras", "compute_loss")],
)
def test_methods_of_a_class_of_the_user_are_refused_or_named(module, method):
    module = MODULES[module]
    kind = type("Sequential", (module.Sequential,), {})
    model = kind(make(module).layers)
    setattr(kind, method, lambda self, *arguments, **settings: None)
    if method == "test_step":
        with pytest.warns(UserWarning, match="fit_keras does not use: Sequential.test_step"):
            fit_keras(model, X, Y, **QUIET)
    else:
        with pytest.raises(InputError, match=f"Sequential has a `{method}` of its own"):
            fit_keras(model, X, Y, **QUIET)


@pytest.mark.parametrize("by", ["var_names", "var_list"])
@pytest.mark.parametrize("module", MODULES)
def test_weights_can_be_excluded_from_weight_decay(module, by):
    rate, decay, results = 0.1, 0.5, []
    for weight_decay in (0.0, decay):
        model = make(MODULES[module])
        before, dense = model.get_weights(), [*model.layers[1].trainable_weights, model.layers[-1].bias]
        names = {"var_names": ["bias", "recurrent"], "var_list": [dense[1], *dense[2:]]}
        optimizer = MODULES[module].optimizers.AdamW(rate, weight_decay=weight_decay)
        optimizer.exclude_from_weight_decay(**{by: names[by]})
        model.compile(optimizer, "sparse_categorical_crossentropy")
        fit_keras(model, X, Y, **QUIET | {"batch_size": len(X)}, num_sampled=V)  # one step
        results.append([np.array(variable) for variable in dense])
    kernel = before[[id(each) for each in model.weights].index(id(dense[0]))]
    np.testing.assert_allclose(results[1][0] - results[0][0], -rate * decay * kernel, atol=4e-7)
    for without, excluded in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(without, excluded)


def test_label_smoothing_is_refused():
    model = make()
    model.compile("adam", keras.losses.CategoricalCrossentropy(label_smoothing=0.1))
    with pytest.raises(InputError, match=r"train with model.fit. Received: label_smoothing=0.1"):
        fit_keras(model, X, Y, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "frozen", "message"),
    [
        ({"initial_biases": False}, None, "`initial_biases`: expected None or 'unigram'. Received: False"),
        ({"initial_embeddings": np.ones((V, 5))}, None, "`initial_embeddings`: expected None or 'counts'"),
        ({"initial_biases": "unigram"}, 3, "`initial_biases`: .* not trainable: biases"),
        ({"initial_embeddings": "counts"}, 3, "`initial_embeddings`: .* not trainable: weights"),
        ({"initial_embeddings": "counts"}, 0, "`initial_embeddings`: .* not trainable: embedding"),
    ],
)
def test_initial_values_are_refused_by_name(arguments, frozen, message):
    model = make()
    if frozen is not None:
        model.layers[frozen].trainable = False
    with pytest.raises(InputError, match=message):
        fit_keras(model, X, Y, **QUIET, **arguments)


@pytest.mark.parametrize("module", MODULES)
def test_training_goes_on_in_other_memory_than_callbacks_and_later_steps_see(module):
    kept, model = [], make(MODULES[module])
    model.compile("adam", "sparse_categorical_crossentropy")

    class Keep(MODULES[module].callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            arrays = [np.asarray(variable) for variable in model.weights]
            kept.extend(zip(arrays, [array.copy() for array in arrays], strict=True))

    fit_keras(model, X, Y, epochs=3, **QUIET, callbacks=[Keep()])
    after = [np.asarray(variable) for variable in model.weights]
    kept += zip(after, [array.copy() for array in after], strict=True)
    fit_keras(model, X, Y, **QUIET)
    model.fit(X, Y, verbose=0)
    for seen, copy in kept:
        np.testing.assert_array_equal(seen, copy)


def test_a_call_leaves_no_state_behind_until_garbage_is_collected():
    model = make()
    model.compile("adam", "sparse_categorical_crossentropy")
    gc.collect()
    gc.disable()
    try:
        fit_keras(model, *sequences(), num_sampled=5, **QUIET)
        assert not any(isinstance(each, TrainState) for each in gc.get_objects())
    finally:
        gc.enable()


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
