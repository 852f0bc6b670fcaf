"""The table of weights serves both directions, bit for bit, and names what does not fit."""

import numpy as np
import pytest
from convert_helpers import assert_models_equal
from helpers import BARE, CHAIN

from convert.keras_models.builder import build
from convert.weights.id_order import KerasIds
from convert.weights.table import (
    from_keras_weights,
    language_model_weights,
    model_from_weights,
    to_keras_weights,
    weight_table,
)
from jaxlm.errors import InputError

CASES = [(1, {}), (2, {"projection_size": 4}), (3, {"projection_size": 5, "tied": True}), (2, CHAIN), (2, BARE)]


@pytest.mark.parametrize(("num_layers", "change"), CASES)
def test_the_table_serves_both_directions_bit_for_bit(random_model, num_layers, change):
    model = random_model(num_layers, **change)
    weights = language_model_weights(model)
    there = to_keras_weights(weights, model.config)
    assert [(variable.path, variable.shape) for variable in build(model.config).weights] == [
        (path, array.shape) for path, array in there.items()
    ]
    back = from_keras_weights(there, model.config)
    assert back.keys() == weights.keys()
    assert_models_equal(model_from_weights(back, model.config), model)


def test_tied_tables_that_differ_are_refused(random_model):
    model = random_model(1, embedding_size=7, tied=True)
    there = to_keras_weights(language_model_weights(model), model.config)
    there["softmax/kernel"] = there["softmax/kernel"] + 1.0
    with pytest.raises(InputError, match="tied"):
        from_keras_weights(there, model.config)


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
            to_keras_weights(weights | {name: array}, model.config)
    with pytest.raises(InputError, match=r"unknown \['extra'\]"):
        to_keras_weights(weights | {"extra": weights["biases"]}, model.config)
    with pytest.raises(InputError, match=r"missing \['softmax/bias'\]"):
        there = to_keras_weights(weights, model.config)
        from_keras_weights({path: array for path, array in there.items() if path != "softmax/bias"}, model.config)
    assert len(list(weight_table(model.config))) == len(weights)


def test_reordered_ids_give_reordered_probabilities(random_model):
    model = random_model()
    keras_ids = KerasIds(np.random.default_rng(0).permutation(23))
    tokens = np.random.default_rng(1).integers(0, 23, (2, 4))
    exported, _ = keras_ids.model_for_keras(model, None)
    logits = exported(keras_ids.tokens_for_keras(tokens))[0]
    np.testing.assert_array_equal(logits[..., keras_ids.ids], model(tokens)[0])
    assert_models_equal(keras_ids.model_for_run(exported, None)[0], model)
