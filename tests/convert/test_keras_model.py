"""Live Keras models in and out: the same function, and refusals that name the layer and the reason."""

import jax
import keras
import numpy as np
import pytest
from keras import layers

import convert
import jaxlm
from convert import comparison, keras_model
from convert.comparison import of_language_model
from convert.keras_model import Form
from jaxlm.errors import InputError

V = 23


def chain(*middle, keras_module=keras, **embedding):
    """A built Sequential of an embedding and other layers."""
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
    "last only": lambda: chain(lstm(), layers.LSTM(7), softmax()),
    "unrolled and stateless": lambda: chain(lstm(unroll=False, stateful=False, seed=3), softmax()),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_keras_models_of_all_shapes_come_in_and_go_back(name):
    model = ACCEPTED[name]()
    language_model = convert.from_keras(model)  # proves itself
    first = 1 if name == "masked" else 0
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


def test_functional_models_and_keras_2_models():
    inputs = keras.Input((None,), dtype="int32")
    outputs = softmax()(lstm()(layers.Dropout(0.3)(layers.Embedding(V, 5)(inputs))))
    assert convert.from_keras(keras.Model(inputs, outputs)).config.dropout == 0.3
    tf_keras = pytest.importorskip("tf_keras", reason="Keras 2 is not installed: pip install tf_keras")
    two = tf_keras.layers
    old = chain(two.LSTM(7, return_sequences=True), two.Dense(V, activation="softmax"), keras_module=tf_keras)
    language_model = convert.from_keras(old)
    new = chain(lstm(), softmax())
    convert.load_into_keras(language_model, new)
    ids = np.arange(V)[None]
    np.testing.assert_allclose(new(ids), old(ids), atol=1e-6)


def subclass():
    class Mine(layers.LSTM):
        pass

    return Mine(7, return_sequences=True)


REFUSED = {
    "Bidirectional": (lambda: chain(layers.Bidirectional(lstm()), softmax()), "no Bidirectional"),
    "gru": (lambda: chain(layers.GRU(7, return_sequences=True), softmax()), "no GRU"),
    "lambda": (lambda: chain(lstm(), layers.Lambda(lambda x: x, name="mine"), softmax()), "'mine' .*no Lambda"),
    "relu": (lambda: chain(lstm(activation="relu", name="r"), softmax()), "'r' .*activation='tanh', this one 'relu'"),
    "hard": (lambda: chain(lstm(recurrent_activation="hard_sigmoid"), softmax()), "recurrent_activation"),
    "recurrent dropout": (lambda: chain(lstm(recurrent_dropout=0.1), softmax()), "recurrent_dropout"),
    "backwards": (lambda: chain(lstm(go_backwards=True), softmax()), "go_backwards"),
    "no bias": (lambda: chain(lstm(use_bias=False), softmax()), "use_bias"),
    "dense without bias": (lambda: chain(lstm(), layers.Dense(V, use_bias=False, name="d")), "'d' .*use_bias"),
    "sizes": (lambda: chain(lstm(7), lstm(8), softmax()), "of one size"),
    "vocabulary": (lambda: chain(lstm(), softmax(V + 1)), "24 units, and the embedding 23 words"),
    "rates": (lambda: chain(layers.Dropout(0.1), lstm(), layers.Dropout(0.2), softmax()), r"\[0.1, 0.2\]"),
    "sigmoid": (lambda: chain(lstm(), layers.Dense(V, activation="sigmoid")), "not in 'sigmoid'"),
    "two softmaxes": (lambda: chain(lstm(), softmax(), layers.Softmax()), "softmax before"),
    "order": (lambda: chain(lstm(), layers.Dense(5), lstm(), softmax()), "Embedding -> LSTM -> Dense -> LSTM"),
    "states": (lambda: chain(layers.LSTM(7, return_sequences=True), layers.LSTM(7), layers.Dense(3)), "3 units"),
    "subclass": (lambda: chain(subclass(), softmax()), "is a class of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jaxlm_cannot_represent_is_refused_by_layer_and_reason(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        convert.from_keras(make())


def test_branches_and_unbuilt_models_are_refused():
    inputs = keras.Input((None,), dtype="int32")
    hidden = lstm(5)(layers.Embedding(V, 5)(inputs))
    with pytest.raises(InputError, match="has no Add|no Add"):
        convert.from_keras(keras.Model(inputs, softmax()(layers.Add()([hidden, hidden]))))
    shared = lstm(5)
    with pytest.raises(InputError, match="cannot be converted|cannot represent"):
        convert.from_keras(keras.Model(inputs, softmax()(shared(shared(hidden)))))
    with pytest.raises(InputError, match="not built"):
        convert.from_keras(keras.Sequential([layers.Embedding(V, 5), lstm(), softmax()]))


def test_models_of_other_sizes_are_refused(random_model):
    with pytest.raises(InputError, match="other sizes"):
        convert.load_into_keras(random_model(), chain(lstm(8), lstm(8), softmax()))


@pytest.mark.parametrize(
    "form",
    [
        Form(),
        Form(logits=True),
        Form(last_only=True),
        Form(single_step=True),
        Form(dtype="float16"),
        Form(dtype="bfloat16"),
        Form(logits=True, single_step=True, dtype="bfloat16"),
    ],
)
def test_every_form_gives_the_same(random_model, form):
    model = random_model(3)
    exported = convert.to_keras(model, form)
    assert exported.count_params() == sum(leaf.size for leaf in jax.tree.leaves(model))
    parity = comparison.compare(of_language_model(model), keras_model.subject(exported), batch_size=3, time=17)
    assert parity.holds, str(parity)
    assert {row.quantity for row in parity.differences} >= {"log-probabilities", "h_1", "h_2", "h_3"}
    assert ("c_3" in {row.quantity for row in parity.differences}) == form.single_step
    if form == Form():
        assert exported.output.dtype == "float32" and exported.output.shape == (None, None, V)
        np.testing.assert_allclose(exported.predict(np.zeros((3, 1)), verbose=0).sum(-1), 1, atol=1e-5)


def test_parity_sees_one_wrong_weight(random_model):
    model = random_model()
    exported = convert.to_keras(model)
    assert comparison.compare(of_language_model(model), keras_model.subject(exported)).holds
    bias = exported.get_layer("lstm_2").cell.bias
    bias.assign(bias + 1e-3 * np.eye(28, dtype=np.float32)[3])
    parity = comparison.compare(of_language_model(model), keras_model.subject(exported))
    assert not parity.holds and parity.difference < 0.1


def test_training_in_keras_goes_on_at_the_loss_that_jaxlm_reports(random_model):
    model = random_model()
    ids = np.random.default_rng(0).integers(0, V, 36)
    exported = convert.to_keras(model)
    exported.compile("sgd", "sparse_categorical_crossentropy")
    loss = exported.evaluate(ids[None, :-1], ids[None, 1:], verbose=0)
    assert loss == pytest.approx(jaxlm.evaluate(model, ids, batch_size=1).loss, abs=1e-5)
    history = exported.fit(ids[None, :-1], ids[None, 1:], epochs=2, verbose=0)
    assert history.history["loss"][0] == pytest.approx(loss, abs=1e-5) and history.history["loss"][1] < loss


def test_weights_go_through_training_and_back():
    model = chain(lstm(), softmax())
    before = model.get_weights()
    state = jaxlm.TrainState.create(
        convert.from_keras(model), jaxlm.TrainConfig(num_sampled=9, batch_size=2, sequence_length=5)
    )
    ids = np.random.default_rng(0).integers(0, V, (2, 6))
    state, _ = jaxlm.train_step(state, ids[:, :-1], ids[:, 1:], 0.01)
    convert.load_into_keras(state.model, model)
    assert all((one != two).any() for one, two in zip(before, model.get_weights(), strict=True))
