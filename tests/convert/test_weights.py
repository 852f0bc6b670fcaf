"""The table of weights serves both directions, bit for bit, and names what does not fit."""

import numpy as np
import pytest

from convert import keras_model
from convert.weights import from_keras, language_model, language_model_weights, reorder_classes, to_keras, weight_table
from jaxlm.errors import InputError

CHANGES = [{}, {"projection_size": 4}, {"projection_size": 5, "tied": True}]


@pytest.mark.parametrize(("num_layers", "change"), zip([1, 2, 3], CHANGES, strict=True))
def test_table_serves_both_directions_bit_for_bit(random_model, num_layers, change):
    model = random_model(num_layers, **change)
    weights = language_model_weights(model)
    there = to_keras(weights, model.config)
    assert [(variable.path, variable.shape) for variable in keras_model.build(model.config).weights] == [
        (path, array.shape) for path, array in there.items()
    ]
    back = from_keras(there, model.config)
    assert back.keys() == weights.keys()
    again = language_model_weights(language_model(back, model.config))
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


def test_tied_tables_that_differ_are_refused(random_model):
    model = random_model(1, embedding_size=7, tied=True)
    there = to_keras(language_model_weights(model), model.config)
    there["softmax/kernel"] = there["softmax/kernel"] + 1.0
    with pytest.raises(InputError, match="tied"):
        from_keras(there, model.config)


def test_unknown_missing_misshapen_and_nan_weights_are_named(random_model):
    model = random_model()
    weights = language_model_weights(model)
    cases = {
        "lstms/0/kernel": weights["lstms/0/kernel"].T,
        "biases": weights["biases"].astype(np.float64),
        "weights": np.full_like(weights["weights"], np.nan),
        "embedding": np.where(weights["embedding"] > 0.5, np.inf, weights["embedding"]).astype(np.float32),
    }
    for name, array in cases.items():
        with pytest.raises(InputError, match=f"weight {name}:"):
            to_keras(weights | {name: array}, model.config)
    with pytest.raises(InputError, match=r"unknown \['extra'\]"):
        to_keras(weights | {"extra": weights["biases"]}, model.config)
    with pytest.raises(InputError, match=r"missing \['softmax/bias'\]"):
        there = to_keras(weights, model.config)
        from_keras({path: array for path, array in there.items() if path != "softmax/bias"}, model.config)
    assert len(list(weight_table(model.config))) == len(weights)


def test_reordered_classes_give_reordered_probabilities(random_model):
    model = random_model()
    index = np.random.default_rng(0).permutation(23)
    ids = np.random.default_rng(1).integers(0, 23, (2, 4))
    np.testing.assert_array_equal(reorder_classes(model, index)(ids)[0], model(index[ids])[0][..., index])
