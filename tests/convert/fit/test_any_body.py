"""`fit_keras` of bodies that jaxlm does not have, against Keras' own `fit`, under Keras' JAX backend."""

import keras
import numpy as np
import pytest
from fit_helpers import run_under_jax

from convert import fit_keras
from jaxlm.errors import InputError

BODIES = """
def attention(x):
    x = L.LayerNormalization()(x)
    return L.Add()([x, L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)])
def residual(x):
    first = L.LSTM(5, return_sequences=True)(x)
    return L.Add()([first, L.LSTM(5, return_sequences=True)(first)])
def tanh(x): return keras.ops.tanh(3 * x)
def shared():
    table, a, b = L.Embedding(V, 5), keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    return keras.Model([a, b], head(L.Concatenate()([L.GRU(4)(table(a)), L.GRU(4)(table(b))])))
def two_inputs():
    ids, price = keras.Input((6,), dtype="int32", name="words"), keras.Input((3,), name="price")
    return keras.Model([ids, price], head(L.Concatenate()([L.GRU(4)(embed(ids)), L.Dense(3)(price)])))
def seq2seq():
    source, target = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    _, state = L.GRU(7, return_state=True)(embed(source, mask_zero=True))
    decoded = L.GRU(7, return_sequences=True)(L.Embedding(V, 4)(target), initial_state=state)
    return keras.Model([source, target], L.TimeDistributed(L.Dense(V, activation="softmax"))(decoded))
class Positions(L.Layer):
    def __init__(self):
        super().__init__()
        self.words, self.places = L.Embedding(V, 5), L.Embedding(6, 5)
    def call(self, ids): return self.words(ids) + self.places(keras.ops.arange(6))
def composite():
    ids = keras.Input((6,), dtype="int32")
    return keras.Model(ids, head(L.GRU(4, return_sequences=True)(Positions()(ids))))
def nested():
    inner = keras.Sequential([keras.Input((6,), dtype="int32"), L.Embedding(V, 5), L.GRU(4, return_sequences=True)])
    return keras.Sequential([keras.Input((6,), dtype="int32"), inner, L.Dense(V), L.Softmax()])
def nested_twice():
    ids = keras.Input((6,), dtype="int32")
    inner = keras.Sequential([ids, L.Embedding(V, 5, mask_zero=True), L.GRU(4, return_sequences=True)])
    body = keras.Sequential([keras.Input((6,), dtype="int32"), inner, L.Dense(4)])
    last = keras.Sequential([keras.Input((6, 4)), L.Dense(V), L.Activation("softmax")])
    return keras.Model(ids, last(body(ids)))
def masking():
    numbers = keras.Input((6,))
    masked = L.Masking()(L.Reshape((6, 1))(keras.ops.where(numbers > 0.3, numbers, 0.0)))
    return keras.Model(numbers, head(L.GRU(4, return_sequences=True)(masked)))
class WordDropout(L.Layer):
    def call(self, ids, training=False): return ids // 2 if training else ids
def word_dropout():
    ids = keras.Input((6,), dtype="int32")
    return keras.Model(ids, head(L.GRU(4, return_sequences=True)(embed(WordDropout()(ids)))))
def frozen():
    model = simple(lambda x: L.Dense(4)(L.GRU(4, return_sequences=True)(x)))
    model.layers[1].trainable = model.layers[2].trainable = False
    return model
def lora():
    model = simple(lambda x: L.Dense(4)(L.GRU(4, return_sequences=True)(x)))
    model.layers[1].enable_lora(2), model.layers[3].enable_lora(2)
    return model
def tied(**settings):
    ids, table = keras.Input((6,), dtype="int32"), L.ReversibleEmbedding(V, 5, **settings)
    logits = table(L.GRU(5, return_sequences=True)(table(ids)), reverse=True)
    return keras.Model(ids, L.Activation("softmax")(logits))
class Tied(L.Layer):
    def __init__(self, table):
        super().__init__()
        self.table, self.bias = table, self.add_weight((V,), name="bias")
    def call(self, x): return keras.ops.matmul(x, keras.ops.transpose(self.table.embeddings)) + self.bias
def tied_layer():
    ids, table = keras.Input((6,), dtype="int32"), L.Embedding(V, 5)
    return keras.Model(ids, L.Softmax()(Tied(table)(L.GRU(5, return_sequences=True)(table(ids)))))
sequence = {"return_sequences": True}
MODELS = {
    "GRU": lambda: simple(L.GRU(7, **sequence)),
    "no layer": lambda: simple(lambda x: x),
    "mask_zero, no layer": lambda: simple(lambda x: x, mask_zero=True),
    "Bidirectional, last word": lambda: simple(L.Bidirectional(L.LSTM(4))),
    "Conv, BatchNormalization": lambda: simple(lambda x: L.BatchNormalization()(L.Conv1D(6, 3, padding="causal")(x))),
    "attention, LayerNormalization": lambda: simple(attention),
    "residual LSTMs": lambda: simple(residual),
    "mask_zero": lambda: simple(L.GRU(6, **sequence), mask_zero=True),
    "mask_zero, TimeDistributed": lambda: keras.Sequential([
        keras.Input((6,), dtype="int32"), L.Embedding(V, 5, mask_zero=True), L.GRU(6, **sequence),
        L.TimeDistributed(L.Dense(V, activation="softmax"))]),
    "mask_zero, last word": lambda: simple(L.GRU(6), mask_zero=True),
    "shared Embedding": shared,
    "two inputs": two_inputs,
    "seq2seq": seq2seq,
    "composite": composite,
    "nested": nested,
    "mask_zero, nested twice": nested_twice,
    "mask_zero, constraints": lambda: simple(
        L.GRU(4, kernel_constraint=keras.constraints.MaxNorm(0.3), bias_constraint="non_neg", **sequence),
        mask_zero=True, embeddings_constraint="max_norm"),
    "Masking": masking,
    "ids that depend on training": word_dropout,
    "regularizer": lambda: simple(L.GRU(4, kernel_regularizer="l2", **sequence)),
    "penalty on an Embedding": lambda: simple(L.LSTM(4, **sequence), activity_regularizer="l2"),
    "own activation": lambda: simple(L.LSTM(4, activation=tanh, **sequence)),
    "frozen": frozen,
    "LoRA": lora,
    "tied": tied,
    "tied, mask_zero": lambda: tied(mask_zero=True),
    "tied by a layer": tied_layer,
    "not tied": lambda: tied(tie_weights=False),
}
for name in NAMES:
    for number, optimizer in enumerate((keras.optimizers.SGD(0.3), keras.optimizers.Adagrad(0.1))):
        if number == len(name) % 2 or ALL:
            size = 4 if name == NAMES[0] or ALL else 5  # of 10 examples: each other size compiles both programs again
            compare(name, MODELS[name](), optimizer, zeros="mask" in name, batch_size=size)
"""

QUICK = [
    "mask_zero, no layer",
    "mask_zero, last word",
    "mask_zero, nested twice",
    "mask_zero, constraints",
    "shared Embedding",
    "two inputs",
    "composite",
    "tied",
    "own activation",
]
REST = [
    "no layer",
    "GRU",
    "frozen",
    "Bidirectional, last word",
    "Conv, BatchNormalization",
    "attention, LayerNormalization",
    "residual LSTMs",
    "mask_zero",
    "mask_zero, TimeDistributed",
    "seq2seq",
    "nested",
    "Masking",
    "ids that depend on training",
    "regularizer",
    "penalty on an Embedding",
    "LoRA",
    "tied, mask_zero",
    "tied by a layer",
    "not tied",
]


@pytest.mark.slow
@pytest.mark.parametrize("names", [QUICK, pytest.param(REST, marks=pytest.mark.exhaustive)])
def test_steps_equal_keras_fit(names):
    """With every class a candidate, drawn uniformly: SGD's and Adagrad's steps, losses and other variables."""
    every = names is REST
    out = run_under_jax(f"NAMES, ALL = {names!r}, {every}\n{BODIES}")
    assert out.count("equal:") == len(names) * (1 + every)


ENDS = """
def sequence_model(layer): return simple(layer)
class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2: raise RuntimeError("a callback")
for name, call in (("keras", None), ("ours", None)):
    keras.utils.set_random_seed(0)
    model = simple(L.GRU(4, return_sequences=True))
    rng = np.random.default_rng(0)
    (x, y), weights = data(model), start(model)
    model.compile(keras.optimizers.Adagrad(0.3), "sparse_categorical_crossentropy")
    settings = {"batch_size": 5, "shuffle": False, "verbose": 0}
    try:
        if name == "keras": model.fit(x, y, epochs=2, **settings)
        else: convert.fit_keras(model, x, y, epochs=9, callbacks=[Stop()], **settings, **EXACT)
    except RuntimeError: print("raised")
    found = [np.array(v) for v in [*model.weights, *model.optimizer.variables]]
    if name == "keras": expected = found
for one, other in zip(found, expected, strict=True): np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(
    convert.fit_keras(model, x, y, verbose=0, validation_data=(x, y)).history["val_loss"][0],
    model.evaluate(x, y, verbose=0), rtol=1e-5)
regular = simple(L.GRU(4, return_sequences=True, kernel_regularizer=keras.regularizers.L2(0.5)))
for metrics in ([], ["accuracy", "sparse_categorical_crossentropy"]):
    regular.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", metrics=metrics)
    found = convert.fit_keras(regular, x, y, batch_size=4, verbose=0, validation_data=(x, y)).history
    for name, value in regular.evaluate(x, y, batch_size=4, verbose=0, return_dict=True).items():
        np.testing.assert_allclose(found["val_" + name][0], value, rtol=1e-5, err_msg=name)
a, b = keras.Input((6,), dtype="int32", name="a"), keras.Input((6,), dtype="int32", name="b")
pair = keras.Model([a, b], head(L.Concatenate()([L.GRU(4)(embed(a)), L.GRU(4)(embed(b))])))
pair.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
nest = keras.Model({"q": a, "p": [b]}, keras.Model([b, a], pair.output)({"a": a, "b": b}))
nest.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
for each, both in ((pair, [x, x[::-1]]), (pair, {"a": x, "b": x[::-1]}), (nest, {"q": x, "p": [x[::-1]]})):
    split = convert.fit_keras(each, both, y[:, :1], validation_split=0.4, verbose=0).history["val_loss"][0]
    np.testing.assert_allclose(split, pair.evaluate([x[6:], x[::-1][6:]], y[6:, :1], verbose=0), rtol=1e-5)
convert.fit_keras(keras.Sequential([L.Flatten(), L.Dense(V)]), rng.random((10, 3, 2)), y[:, 0], verbose=0)
one = keras.Input((1,), dtype="int32")
bigram = keras.Model(one, head(L.Flatten()(embed(one))))
bigram.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
for shape in ((10,), (10, 1), (10, 1, 1)):
    found = convert.fit_keras(bigram, x[:, 0].reshape(shape), y[:, 0], verbose=0, **EXACT).history["loss"][0]
    np.testing.assert_allclose(found, bigram.evaluate(x[:, :1], y[:, 0], verbose=0), rtol=1e-5)
def refusal(expected, model, *arguments, **settings):
    try: convert.fit_keras(model, *(arguments or data(model)), verbose=0, **settings)
    except ValueError as error: assert expected in str(error) and "\\n" not in str(error), error
    else: raise AssertionError(expected)
ids = keras.Input((6,), dtype="int32")
table = L.Embedding(V, 5); hidden = L.GRU(5, return_sequences=True)(table(ids))
refusal("Matmul", keras.Model(ids, keras.ops.matmul(hidden, keras.ops.ones((5, V)))))
refusal("2 outputs", keras.Model(ids, [L.Dense(V)(hidden), L.Dense(V)(hidden)]))
refusal("applies sigmoid", keras.Model(ids, L.Dense(V, activation="sigmoid")(hidden)))
capped = L.ReversibleEmbedding(V, 5, logit_soft_cap=3.0)
refusal("logit_soft_cap=3.0", keras.Model(ids, capped(L.GRU(5)(capped(ids)), reverse=True)))
class Capped(L.Layer):
    def call(self, x): return 30 * keras.ops.tanh(keras.ops.matmul(x, keras.ops.transpose(self.table.embeddings)) / 30)
capped = Capped(); capped.table = table
refusal("ends in Capped", keras.Model(ids, capped(hidden)))
refusal("another one", keras.Model(ids, L.Softmax()(L.TimeDistributed(L.Dense(V, activation="softmax"))(hidden))))
def softmax(x): return keras.ops.softmax(2 * x)
refusal("softmax, which is not defined in Keras", keras.Model(ids, L.Dense(V, activation=softmax)(hidden)))
refusal("Add keras.Input(shape)", keras.Sequential([L.Flatten(), L.Dense(V)]), x.tolist(), y[:, 0])
refusal("must be unchanged", keras.Sequential([L.Reshape((5, 2)), L.Dense(V)]), x, y[:, 0])
class Custom(keras.Model):
    def compute_loss(self, *arguments, **settings): return 10 * super().compute_loss(*arguments, **settings)
refusal("has a `compute_loss` of its own", Custom(ids, L.Dense(V)(hidden)))
class Scale(L.Layer):
    _by = 1.0
    def call(self, x): return self._by * x
def changed(change):
    model = simple(lambda x: Scale()(L.BatchNormalization()(L.LeakyReLU()(L.Dense(4)(L.Flatten()(x))))))
    convert.fit_keras(model, *data(model), verbose=0)
    change(model)
    return model
refusal("has LoRA", changed(lambda model: model.layers[-1].enable_lora(2)))
refusal("is quantized to int8", changed(lambda model: model.quantize("int8")))
for change in (lambda model: model.layers[1].enable_lora(2),
               lambda model: setattr(model.layers[3], "activation", keras.activations.tanh),
               lambda model: setattr(model.layers[4], "negative_slope", 5.0),
               lambda model: setattr(model.layers[5], "momentum", 0.1),
               lambda model: setattr(model.layers[6], "_by", 3.0)):
    compare("changed", changed(change), keras.optimizers.SGD(0.3), batch_size=5)
refusal("shape (None, 6); a dataset needs `.batch()`. Received: (6,)", model, iter([(x[0], y[0])]), steps_per_epoch=1)
always = keras.Input(batch_shape=(4, 6), dtype="int32")
states = keras.Model(always, head(L.GRU(4, return_sequences=True, stateful=True)(embed(always))))
sizes = {"batch_size": 4, "validation_batch_size": 5}
refusal("`validation_batch_size`: expected 4, as the", states, x[:8], y[:8], validation_data=(x, y), **sizes)
"""


@pytest.mark.slow
def test_whatever_ends_a_call_leaves_the_weights_of_the_last_step_and_val_loss_is_exact():
    lines = run_under_jax(ENDS).splitlines()
    assert lines[0] == "raised" and lines.count("equal: changed SGD") == 5


@pytest.mark.parametrize(
    ("activation", "subclassed", "message"),
    [
        (None, False, "has no GRU.* KERAS_BACKEND=jax before Keras is imported"),
        ("sigmoid", False, r"applies sigmoid; fit_keras trains models that end in Dense\(V\)"),
        (None, True, "not built yet, or subclassed; make it functional or Sequential"),
    ],
)
def test_other_backends_are_told_to_use_jax_for_a_model_that_it_can_train(activation, subclassed, message):
    layers = keras.layers
    head = layers.Dense(23, activation)
    model = keras.Sequential([keras.Input((6,)), layers.Embedding(23, 5), layers.GRU(4), head])
    if subclassed:
        inner, model = model, type("Mine", (keras.Model,), {"call": lambda self, x: inner(x)})()
        model(np.ones((4, 6)))
    with pytest.raises(InputError, match=message) as error:
        fit_keras(model, np.ones((4, 6)), np.ones(4))
    assert ("KERAS_BACKEND" in str(error.value)) == ("KERAS_BACKEND" in message)
