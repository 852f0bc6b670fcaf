"""Data in every form that `model.fit` takes, against Keras' own `fit`; and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fit_helpers import (
    EXACT,
    QUIET,
    V,
    make,
    sequences,
)
from helpers import quick_if

from convert import fit_keras
from jaxlm.errors import InputError

X, Y = sequences()


def batches(count=10):
    x, y = sequences(count)
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, count, 4)]


def endless():
    while True:
        yield from batches(8)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return batches(8)[index % 2]


def loader():
    torch = pytest.importorskip("torch")
    x, y = map(torch.from_numpy, sequences())
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)


def dataset(count=10):
    return tf.data.Dataset.from_tensor_slices(sequences(count)).batch(4)


def unknown():
    return tf.data.Dataset.from_generator(
        lambda: iter(batches()), output_signature=(tf.TensorSpec((None, 6), tf.int64),) * 2
    )


FORMS = {  # what is called with, made anew for each call
    "generator": lambda: {"x": endless(), "steps_per_epoch": 3},
    "validated without an end": lambda: {
        "x": endless(),
        "steps_per_epoch": 2,
        "validation_data": dataset(8).repeat(),
        "validation_steps": 3,
    },
    "repeat": lambda: {"x": dataset(8).repeat(), "steps_per_epoch": 3},
    "unknown length": lambda: {"x": unknown()},
    "endless PyDataset": lambda: {"x": Endless(), "steps_per_epoch": 3},
    "DataLoader": lambda: {"x": loader()},
    "half a pass": lambda: {"x": dataset(16), "steps_per_epoch": 2},
    "validation steps": lambda: {"x": dataset(), "validation_data": dataset(), "validation_steps": 2},
    "every second epoch": lambda: {"x": dataset(), "validation_data": dataset(), "validation_freq": 2},
    "in listed epochs": lambda: {"x": dataset(), "validation_data": dataset(), "validation_freq": [1, 3]},
    "None": lambda: {"x": dataset(), "steps_per_epoch": None, "class_weight": None, "validation_steps": None},
}


MUCH_ALIKE = {"repeat", "half a pass", "in listed epochs", "None"}


@pytest.mark.parametrize("form", quick_if(lambda form: form not in MUCH_ALIKE, [(form,) for form in FORMS]))
def test_training_on_every_form_equals_keras_fit(form):
    results = []
    for call in (keras.Model.fit, fit_keras):
        model = make()
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        exact = EXACT if call is fit_keras else {}
        history = call(model, **FORMS[form](), **exact, epochs=3, verbose=0).history
        results.append((history, model.get_weights()))
    (theirs, their_weights), (ours, our_weights) = results
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    for one, other in zip(our_weights, their_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [lambda a: {"o": a}, lambda a: [a]])
def test_arrays_in_a_dict_or_a_list_are_those_themselves(several):
    """The mean over batches of 4, 4 and 2 examples, too; and a split of them."""
    x, y = sequences(14)
    weight = np.random.default_rng(1).random(y.shape)
    data = tf.data.Dataset.from_tensor_slices((x[:10], y[:10], weight[:10])).batch(4)
    named = data.map(lambda x, y, weight: (x, {"o": y}, {"o": weight}))
    results = []
    for arguments in (
        {"x": x, "y": y, "sample_weight": weight},
        {"x": several(x), "y": several(y), "sample_weight": several(weight)},
        {"x": named, "validation_data": (several(x[10:]), several(y[10:]), several(weight[10:]))},
    ):
        model = make()
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        split = {} if "y" not in arguments else {"validation_split": 4 / 14, "batch_size": 4}
        results.append(fit_keras(model, **arguments, **split, **EXACT, epochs=2, shuffle=False, verbose=0).history)
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, values in other.items():
            np.testing.assert_allclose(values, results[0][name], rtol=1e-6, err_msg=name)


def test_a_generator_that_ends_too_early_is_refused_and_leaves_the_steps_before():
    results = []
    for epochs in (2, 3):
        model, stream = make(), iter(batches())
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        if epochs == 3:
            with pytest.raises(InputError, match="Invalid `x`: expected batches in each epoch. It has ended"):
                fit_keras(model, stream, steps_per_epoch=2, epochs=epochs, **EXACT, verbose=0)
        else:
            fit_keras(model, stream, steps_per_epoch=2, epochs=epochs, **EXACT, verbose=0)
        results.append(model.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pass_of_unknown_length_may_end_with_an_epoch():
    """Keras trains every second epoch on no batch there."""
    arguments = {"epochs": 3, "num_sampled": 9, "verbose": 0}
    histories = [fit_keras(make(), unknown(), steps_per_epoch=steps, **arguments).history for steps in (None, 3)]
    assert histories[0] == histories[1]


def test_a_weight_that_became_trainable_needs_an_optimizer_that_knows_it():
    model = make()
    model.layers[0].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = True
    with pytest.raises(InputError, match="no state for .*embedding.*; compile the model again"):
        fit_keras(model, X, Y, **QUIET)


def test_class_weights_are_those_of_keras_fit():
    results, (x, y) = [], sequences()
    for call in (keras.Model.fit, fit_keras):  # Keras has them for the last word alone
        model = make(last_only=True)
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        exact = EXACT if call is fit_keras else {}
        labels = y[:, -1]
        weights = {int(labels[0]): 0.0, int(labels[1]): 2.5}
        history = call(model, x, labels, **QUIET, **exact, shuffle=False, epochs=2, class_weight=weights).history
        results.append((history["loss"], *model.get_weights()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_sampler_says_which_words_it_has_counted(capsys):
    fit_keras(make(), endless(), steps_per_epoch=2, num_sampled=9, verbose=2)
    assert "labels of the first 2 batches" in capsys.readouterr().out
    fit_keras(make(), endless(), steps_per_epoch=2, num_sampled=9, verbose=2, counts=np.arange(V))
    assert "first 2 batches" not in capsys.readouterr().out


def test_batches_may_grow_in_later_passes():
    sizes = iter([(2, 3), (2, 3), (5, 9), (2, 3), (7, 40)])

    def growing():
        for count, length in sizes:
            yield sequences(count, length)

    history = fit_keras(make(), growing(), steps_per_epoch=1, epochs=4, num_sampled=9, verbose=0).history
    assert len(history["loss"]) == 4 and np.all(np.isfinite(history["loss"]))


def test_ids_are_checked_before_they_are_cast():
    x, y = sequences()
    for shift in (2**32, -(2**32)):
        with pytest.raises(InputError, match="`x`: expected ids"):
            fit_keras(make(), x.astype(np.int64) + shift, y, **QUIET)
        with pytest.raises(InputError, match="`y`: expected ids"):
            fit_keras(make(), x, y.astype(np.int64) + shift, **QUIET)
    with pytest.raises(InputError, match="`x`: expected ids"):
        fit_keras(make(), x.astype(np.uint64) + np.uint64(2**63), y, **QUIET)


REFUSALS = [  # arguments, the model, the message
    ({"class_weight": {V: 1.0}}, {}, "`class_weight`: expected classes from 0 to 22"),
    ({"class_weight": [1.0, 2.0]}, {}, "`class_weight`: expected a dict from class to weight"),
    ({"class_weight": {"a": 2.0}}, {}, "`class_weight`: expected classes from 0 to 22. Received: 'a'"),
    ({"class_weight": {1: None}}, {}, "`class_weight`: expected finite weights. Received: None"),
    ({"validation_freq": 0}, {}, "`validation_freq`: expected an integer of at least 1"),
    ({"validation_freq": "1"}, {}, "`validation_freq`: expected an integer of at least 1"),
    ({"steps_per_epoch": 0}, {}, "`steps_per_epoch`: expected an integer of at least 1"),
    ({"validation_steps": 1.5}, {}, "`validation_steps`: expected an integer of at least 1"),
    ({"epochs": None}, {}, "`epochs`: expected an integer of at least 0"),
    ({"y": [Y, Y]}, {}, "`y`: expected one array, or a dict with one. Received: '2 arrays'"),
    ({"sample_weight": {"a": Y, "b": Y}}, {}, "`sample_weight`: expected one array, or a dict with one"),
    ({"x": iter([(X, None)]), "y": None, "steps_per_epoch": 1}, {}, r"batches of \(x, y\).*'NoneType'"),
    ({"x": tf.data.Dataset.from_tensor_slices((X, Y)), "y": None}, {}, r"\[N, T\]; a dataset needs `.batch\(\)`"),
    (
        {"x": tf.data.Dataset.from_tensor_slices((X, Y[:, 0])), "y": None},
        {"last_only": True},
        r"`x`: expected batches of examples; a dataset needs `.batch\(\)`. Received: \[\(6,\), \(\)\]",
    ),
    ({"workers": 3}, {}, "no argument `workers`; leave it out"),
    ({"epoch": 2}, {}, r"no argument `epoch`; did you mean `epochs`\?"),
    ({"x": np.full(X.shape, "the")}, {}, "`x`: expected integer ids. Received: strings; turn words into ids"),
    ({"x": ["the sea"] * len(X)}, {}, "`x`: expected integer ids. Received: strings"),
    ({"y": np.full(Y.shape, "sea", object)}, {}, "`y`: expected integer ids. Received: strings"),
    ({"x": tf.data.Dataset.from_tensors((X.astype(str), Y)), "y": None}, {}, "`x`: expected integer ids.*strings"),
    ({"x": X * 1j}, {}, "`x`: expected an array, a dataset or a generator of numbers. Received: 'complex128'"),
    ({"counts": [1, 2]}, {}, "`counts`: expected 23 whole numbers"),
    ({"counts": np.full(V, 1 / V)}, {}, "`counts`: expected 23 whole numbers"),
    ({"counts": np.full(V, np.inf)}, {}, "`counts`: expected 23 whole numbers"),
    ({"x": X + V}, {}, "`x`: expected ids from 0 to 22, the vocabulary. Received: 24 to 45"),
    ({"x": X + 0.5}, {}, "`x`: expected integer ids. Received: 'float64 with fractions'"),
    ({"y": Y - V}, {}, "`y`: expected ids from 0 to 22"),
    ({"x": X[0]}, {}, "`x`"),
    ({"x": X[:5]}, {}, r"the same number of examples, at least one. Received: \[5, 10\]"),
    ({"x": X[:0], "y": Y[:0]}, {}, "at least one"),
    ({"y": Y[:, 0]}, {}, r"`y`: expected labels of shape \[N, T\]"),
    ({}, {"last_only": True}, r"`y`: expected labels of shape \[N\]"),
    ({"y": np.ones((10, 6, V))}, {}, "rows that are not one-hot"),
    ({"y": None}, {}, "`y`: expected an array"),
    ({"x": iter([])}, {}, "`y`: expected None with a dataset"),
    ({"x": iter([]), "y": None}, {}, "`steps_per_epoch`: expected a number for an endless `x`"),
    ({"x": iter([]), "y": None, "steps_per_epoch": 2}, {}, "`x`: expected at least one example"),
    ({"x": tf.ragged.constant([[1, 2], [3]])}, {}, "to_tensor"),
    ({"x": [[1, 2], [3]]}, {}, "`x`.*not ragged"),
    ({"x": iter([([[1, 2], [3]], Y)]), "y": None, "steps_per_epoch": 1}, {}, "`x`.*not ragged"),
    ({"x": tf.data.Dataset.from_tensors((X, Y)).repeat(), "y": None}, {}, "`steps_per_epoch`: expected a number"),
    ({"x": tf.data.Dataset.from_tensors((X, Y))}, {}, "`y`: expected None with a dataset"),
    ({"x": tf.data.Dataset.from_tensors(X), "y": None}, {}, r"batches of \(x, y\)"),
    ({"sample_weight": np.ones((10, 3))}, {}, "`sample_weight`"),
    ({"batch_size": 0}, {}, "`batch_size`"),
    ({"validation_split": 1.5}, {}, "`validation_split`"),
    ({"validation_split": 0.99}, {}, "`validation_split`: expected examples on both sides"),
    ({"validation_split": 0.2, "validation_data": (X, Y)}, {}, "`validation_split`: expected 0 with"),
    ({"validation_data": (X,)}, {}, "`validation_data`"),
    ({"validation_data": (X + V, Y)}, {}, "`validation_data`: expected ids"),
    ({"num_sampled": 0}, {}, "`num_sampled`"),
    ({"shuffle": True}, {"stateful": True}, "`shuffle`: expected False for a stateful model"),
    ({"batch_size": 5}, {"stateful": True}, "`batch_size`: expected 4, as the stateful model has"),
    ({"batch_size": 4}, {"stateful": True}, "`x`: expected a multiple of 4 examples of equal length"),
    (
        {"x": X[:8] * 0, "y": Y[:8], "batch_size": 4},
        {"stateful": True, "mask_zero": True},
        "`x`: expected no 0 ",
    ),
]


@pytest.mark.parametrize(("arguments", "model", "message"), REFUSALS)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, model, message):
    model = make(**model)
    before = model.get_weights()
    with pytest.raises(InputError, match=message) as error:
        fit_keras(model, **{"x": X, "y": Y, "verbose": 0} | arguments)
    assert "\n" not in str(error.value)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
