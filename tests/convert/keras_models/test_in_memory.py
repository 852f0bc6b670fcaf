"""Live Keras models in and out: the same predictions, or a refusal that names the layer and the reason."""

import jax
import keras
import numpy as np
import pytest
import tf_keras
from convert_helpers import ROOT, run_python
from keras import layers

import convert
import jaxlm
from convert.checks.comparison import compare, text_losses
from convert.checks.predictor import language_model_predictor
from convert.keras_models.live_layers import keras_predictor
from convert.options import ExportOptions
from jaxlm.errors import InputError

V = 23


def chain(*middle, keras_module=keras, **embedding):
    """Builds a Sequential model of an embedding and other layers, with random weights."""
    embed = keras_module.layers.Embedding(V, 5, **embedding)
    model = keras_module.Sequential([embed, *middle])
    model.build((None, None))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([rng.normal(0, 0.5, array.shape).astype("float32") for array in layer.get_weights()])
    return model


def lstm(size=7, **settings):
    return layers.LSTM(size, return_sequences=True, **settings)


def softmax(size=V):
    return layers.Dense(size, activation="softmax")


ACCEPTED = {
    "plain": lambda: chain(lstm(), softmax()),
    "names": lambda: chain(lstm(name="reader"), layers.Dense(V, activation="softmax", name="guess"), name="words"),
    "dropout": lambda: chain(layers.Dropout(0.2), lstm(dropout=0.2), lstm(), layers.SpatialDropout1D(0.2), softmax()),
    "logits": lambda: chain(lstm(), layers.Dense(V)),
    "activation": lambda: chain(lstm(), layers.Dense(V), layers.Activation("softmax")),
    "softmax layer": lambda: chain(lstm(), layers.Dense(V), layers.Softmax()),
    "time distributed": lambda: chain(lstm(), layers.TimeDistributed(softmax())),
    "masked": lambda: chain(lstm(), lstm(), softmax(), mask_zero=True),
    "masked, functional": lambda: (lambda model: keras.Model(model.inputs, model.outputs))(ACCEPTED["masked"]()),
    "last only": lambda: chain(lstm(), layers.LSTM(7), softmax()),
    "unrolled and stateless": lambda: chain(lstm(unroll=False, stateful=False, seed=3), softmax()),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_keras_model_of_any_supported_shape_goes_to_jaxlm_and_back(name):
    model = ACCEPTED[name]()
    language_model = convert.from_keras(model)  # which compares the two
    first = 1 if name.startswith("masked") else 0
    ids = np.random.default_rng(1).integers(first, V, (2, 6))
    ours = np.asarray(jax.nn.log_softmax(language_model(ids)[0]))
    outputs = keras.ops.convert_to_numpy(model(ids))
    theirs = keras.ops.convert_to_numpy(keras.ops.log_softmax(outputs)) if name == "logits" else np.log(outputs)
    np.testing.assert_allclose(ours[:, -1] if outputs.ndim == 2 else ours, theirs, atol=1e-5)
    other = ACCEPTED[name]()
    for layer in other.layers:
        layer.set_weights([0 * array for array in layer.get_weights()])
    convert.load_into_keras(language_model, other)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_functional_model_is_converted():
    inputs = keras.Input((None,), dtype="int32")
    outputs = softmax()(lstm()(layers.Dropout(0.3)(layers.Embedding(V, 5)(inputs))))
    assert convert.from_keras(keras.Model(inputs, outputs)).config.dropout_rates == (0.3, 0.0)


def test_a_keras_2_model_is_converted():
    two = tf_keras.layers
    old = chain(two.LSTM(7, return_sequences=True), two.Dense(V, activation="softmax"), keras_module=tf_keras)
    language_model = convert.from_keras(old)
    new = chain(lstm(), softmax())
    convert.load_into_keras(language_model, new)
    ids = np.arange(V)[None]
    np.testing.assert_allclose(new(ids), old(ids), atol=1e-6)


def tanh(x):
    return keras.ops.tanh(3 * x)


REFUSED = {
    "masking": (lambda: chain(layers.Masking(name="m"), lstm(), softmax()), "'m' .*no Masking"),
    "normalization": (lambda: chain(lstm(), layers.BatchNormalization(name="n"), softmax()), "'n' .*no BatchNorm"),
    "stacked cells": (
        lambda: chain(layers.RNN([layers.LSTMCell(3), layers.LSTMCell(4)], name="s"), softmax()),
        "no RNN",
    ),
    "gelu": (
        lambda: chain(lstm(), layers.Dense(5, "gelu", name="g"), softmax()),
        "^(?!.*damaged).*'g' .*relu or tanh.* Received: 'gelu'",
    ),
    "two activations": (
        lambda: chain(lstm(), layers.Dense(5, "relu"), layers.Activation("tanh", name="t"), softmax()),
        "^(?!.*damaged).*'t' .*already an activation",
    ),
    "leaky": (
        lambda: chain(lstm(), layers.Dense(5), layers.ReLU(negative_slope=0.1), softmax()),
        "a ReLU without max_value",
    ),
    "bidirectional": (lambda: chain(layers.Bidirectional(lstm()), softmax()), "no Bidirectional"),
    "gru": (lambda: chain(layers.GRU(7, return_sequences=True), softmax()), "no GRU"),
    "lambda": (lambda: chain(lstm(), layers.Lambda(lambda x: x, name="mine"), softmax()), "'mine' .*no Lambda"),
    "relu": (
        lambda: chain(lstm(activation="relu", name="r"), softmax()),
        r"'r' .*activation='tanh'\. Received: 'relu'",
    ),
    "hard": (lambda: chain(lstm(recurrent_activation="hard_sigmoid"), softmax()), "recurrent_activation"),
    "backwards": (lambda: chain(lstm(go_backwards=True), softmax()), "go_backwards"),
    "vocabulary": (lambda: chain(lstm(), softmax(V + 1)), "expected 23 units.* Received: 24"),
    "sigmoid": (lambda: chain(lstm(), layers.Dense(V, activation="sigmoid")), "Received: 'sigmoid'"),
    "two softmaxes": (lambda: chain(lstm(), softmax(), layers.Softmax()), "already a softmax"),
    "order": (lambda: chain(lstm(), layers.Dense(5), lstm(), softmax()), "Embedding -> LSTM -> Dense -> LSTM"),
    "states": (lambda: chain(layers.LSTM(7, return_sequences=True), layers.LSTM(7), layers.Dense(3)), "Received: 3"),
    "subclass": (lambda: chain(type("Mine", (layers.LSTM,), {})(7, return_sequences=True), softmax()), "is defined in"),
    "own function": (lambda: chain(lstm(activation=tanh, name="o"), softmax()), "'o' .*tanh is defined in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_jaxlm_cannot_represent_is_refused_by_layer_and_reason(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        convert.from_keras(make())


def test_two_outputs_and_the_states_of_an_lstm_are_refused():
    ids = keras.Input((None,), dtype="int32")
    hidden, h, _ = layers.LSTM(7, return_sequences=True, return_state=True)(layers.Embedding(V, 5)(ids))
    convert.from_keras(keras.Model(ids, softmax()(hidden)))
    with pytest.raises(InputError, match="as its only input"):
        convert.from_keras(keras.Model(ids, softmax()(h)))
    with pytest.raises(InputError, match="expected one output"):
        convert.from_keras(keras.Model(ids, [softmax()(hidden), hidden]))


def test_dropout_is_read_where_it_is():
    model = chain(layers.Dropout(0.5), lstm(dropout=0.5), layers.Dropout(0.25), layers.Dense(9), softmax())
    assert convert.from_keras(model).config.dropout_rates == (0.75, 0.25, 0.0)
    assert convert.from_keras(chain(lstm(dropout=0.25), layers.Dropout(0.25), softmax())).config.dropout_rates == (
        0.25,
        0.25,
    )


def test_a_comparison_reads_from_zero_states_and_leaves_those_of_the_user():
    model = keras.Sequential([keras.Input((4,), batch_size=3, dtype="int32"), layers.Embedding(V, 5)])
    for layer in (lstm(stateful=True), softmax()):
        model.add(layer)
    model(np.ones((3, 4)))
    before = [np.asarray(state) for state in model.layers[1].states]
    language_model = convert.from_keras(model)
    convert.load_into_keras(language_model, model)
    assert all(state.any() for state in before)
    for one, two in zip(before, model.layers[1].states, strict=True):
        np.testing.assert_array_equal(one, two)
    predictor = keras_predictor(model)
    assert predictor.shape == (3, 4)
    tokens = np.random.default_rng(0).integers(0, V, 11)
    losses, count = text_losses(predictor, language_model_predictor(language_model), tokens)
    assert count == 8 and abs(losses[0] - losses[1]) < 1e-5


def test_branches_and_unbuilt_models_are_refused():
    inputs = keras.Input((None,), dtype="int32")
    hidden = lstm(5)(layers.Embedding(V, 5)(inputs))
    with pytest.raises(InputError, match="'add' .*expected a chain without branches"):
        convert.from_keras(keras.Model(inputs, softmax()(layers.Add()([hidden, hidden]))))
    mask = keras.ops.not_equal(inputs, 0)  # of the user's own
    with pytest.raises(InputError, match="NotEqual.*expected a chain without branches"):
        convert.from_keras(keras.Model(inputs, softmax()(lstm(5)(layers.Embedding(V, 5)(inputs), mask=mask))))
    shared = lstm(5)
    with pytest.raises(InputError, match="cannot be converted|Invalid Keras model"):
        convert.from_keras(keras.Model(inputs, softmax()(shared(shared(hidden)))))
    with pytest.raises(InputError, match="not built"):
        convert.from_keras(keras.Sequential([layers.Embedding(V, 5), lstm(), softmax()]))


def test_weights_of_other_sizes_or_into_layers_with_lora_are_not_loaded(random_model):
    with pytest.raises(InputError, match="expected weights of shapes"):
        convert.load_into_keras(random_model(), chain(lstm(8), lstm(8), softmax()))
    model = chain(lstm(), softmax())
    model.layers[-1].enable_lora(2)
    before = model.get_weights()
    with pytest.raises(InputError, match="has LoRA; copy the weights into a model without it"):
        convert.load_into_keras(convert.from_keras(model), model)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(),
        ExportOptions(last_only=True),
        ExportOptions(single_step=True),
        pytest.param(ExportOptions(logits=True), marks=pytest.mark.exhaustive),
        pytest.param(ExportOptions(dtype="float16"), marks=pytest.mark.exhaustive),
        ExportOptions(dtype="bfloat16"),
        pytest.param(ExportOptions(logits=True, single_step=True, dtype="bfloat16"), marks=pytest.mark.exhaustive),
    ],
)
def test_every_option_gives_the_same_predictions(random_model, options):
    model = random_model(3)
    exported = convert.to_keras(model, options)
    assert exported.count_params() == sum(leaf.size for leaf in jax.tree.leaves(model))
    comparison = compare(language_model_predictor(model), keras_predictor(exported)._replace(shape=(3, 17)))
    assert comparison.within_tolerance, str(comparison)
    quantities = {row.quantity for row in comparison.differences}
    assert quantities >= {"log-probabilities", "h_1", "h_2", "h_3"}
    assert ("c_3" in quantities) == options.single_step
    if options == ExportOptions():
        assert exported.output.dtype == "float32" and exported.output.shape == (None, None, V)
        np.testing.assert_allclose(exported.predict(np.zeros((3, 1)), verbose=0).sum(-1), 1, atol=1e-5)


def test_a_comparison_detects_one_wrong_weight(random_model):
    model = random_model()
    exported = convert.to_keras(model)
    assert compare(language_model_predictor(model), keras_predictor(exported)).within_tolerance
    bias = exported.get_layer("lstm_2").cell.bias
    bias.assign(bias + 1e-3 * np.eye(28, dtype=np.float32)[3])
    comparison = compare(language_model_predictor(model), keras_predictor(exported))
    assert not comparison.within_tolerance and comparison.max_difference < 0.1


def test_training_in_keras_continues_at_the_loss_that_jaxlm_reports(random_model):
    model = random_model()
    ids = np.random.default_rng(0).integers(0, V, 36)
    exported = convert.to_keras(model)
    exported.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    loss = exported.evaluate(ids[None, :-1], ids[None, 1:], verbose=0)
    assert loss == pytest.approx(jaxlm.evaluate(model, ids, batch_size=1).loss, abs=1e-5)
    history = exported.fit(ids[None, :-1], ids[None, 1:], epochs=2, verbose=0)
    assert history.history["loss"][0] == pytest.approx(loss, abs=1e-5) and history.history["loss"][1] < loss


def test_weights_are_trained_in_jaxlm_and_return_to_keras():
    model = chain(lstm(), softmax())
    before = model.get_weights()
    config = jaxlm.TrainConfig(num_sampled=9, batch_size=2, sequence_length=5)
    state = jaxlm.TrainState.create(convert.from_keras(model), config)
    ids = np.random.default_rng(0).integers(0, V, (2, 6))
    state, _ = jaxlm.train_step(state, (ids[:, :-1], ids[:, 1:]), 0.01)
    convert.load_into_keras(state.model, model)
    assert all((one != two).any() for one, two in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_the_example_trains_a_keras_model(corpus_dir, tmp_path):
    text = (ROOT / "examples" / "train_keras_model.py").read_text(encoding="utf-8")
    script = tmp_path / "example.py"
    script.write_text(text.replace("256)", "6)").replace("LSTM(1024", "LSTM(9"), encoding="utf-8")
    result = run_python(script, corpus_dir, 30)
    assert result.returncode == 0, result.stderr
    assert "loss by Keras" in result.stdout and result.stdout.count("expected") == 35


def test_a_model_of_several_inputs_that_is_not_a_single_step_is_refused():
    ids, h = keras.Input((None,), dtype="int32", name="token_ids"), keras.Input((5,), name="h")
    outputs = layers.LSTM(5)(layers.Embedding(V, 5)(ids), initial_state=[h, h])
    for model in (keras.Model([ids, h], outputs), keras.Model({"token_ids": ids, "h": h}, {"logits": outputs})):
        with pytest.raises(InputError, match="several inputs|expected token_ids and states as inputs"):
            keras_predictor(model)


@pytest.mark.parametrize("module", [keras, tf_keras])
def test_a_fixed_shape_is_compared_as_it_is_and_states_stay(module):
    shape = {"batch_shape" if module is keras else "batch_input_shape": (3, 4)}
    kinds = module.layers
    stack = [kinds.InputLayer(**shape), kinds.Embedding(V, 5), kinds.LSTM(7, return_sequences=True, stateful=True)]
    model = module.Sequential([*stack, kinds.Dense(V, activation="softmax")])
    model(np.full((3, 4), 2, "int32"))
    before = np.array(model.layers[1].states)
    assert np.abs(before).max() > 0
    language_model = convert.from_keras(model)
    np.testing.assert_array_equal(model.layers[1].states, before)
    comparison = compare(keras_predictor(model), language_model_predictor(language_model))
    assert comparison.within_tolerance
    assert comparison.differences[0].num_values == 3 * 4 * V
    other = keras_predictor(chain(lstm(), softmax()))._replace(shape=(None, 5))
    with pytest.raises(InputError, match="different shapes: sequence_length 4 and 5"):
        compare(keras_predictor(model), other)
    with pytest.raises(InputError, match="too short: expected at least 5 words"):
        text_losses(keras_predictor(model), language_model_predictor(language_model), np.arange(4))
    loss, words = text_losses(keras_predictor(model), language_model_predictor(language_model), np.arange(15) % V)
    assert words == 12  # whole windows of 4
    np.testing.assert_allclose(*loss, rtol=1e-5)
