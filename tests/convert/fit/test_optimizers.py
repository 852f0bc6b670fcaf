"""Keras' optimizers in `fit_keras` against Keras' own, under Keras' JAX backend."""

import pytest
from fit_helpers import run_under_jax

# a batch has all ids, so that lazy updates are the dense ones; some of them twice
OPTIMIZERS = """
O = keras.optimizers
OPTIMIZERS = [
    O.Adam(0.02, amsgrad=True), O.AdamW(0.02, weight_decay=0.1), O.Nadam(0.02), O.Adamax(0.02, beta_1=0.8),
    O.RMSprop(0.02, momentum=0.5, centered=True), O.Adagrad(0.1, clipvalue=0.01), O.Adadelta(1.0), O.Lion(0.01),
    O.SGD(0.1, momentum=0.9, nesterov=True), O.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    O.LossScaleOptimizer(O.Adam(O.schedules.ExponentialDecay(0.02, 1, 0.9), epsilon=1e-5)),
    O.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
    O.Adam(O.schedules.ExponentialDecay(0.02, 1, 0.5), global_clipnorm=0.1, gradient_accumulation_steps=3),
    O.Nadam(0.02, gradient_accumulation_steps=2), O.AdamW(0.02, weight_decay=0.1, gradient_accumulation_steps=3),
    O.Adagrad(0.1, clipvalue=0.01, gradient_accumulation_steps=2),
]
ids = keras.Input((V + 7,), dtype="int32")
model = keras.Model(ids, head(L.Conv1D(6, 3, padding="causal")(embed(ids))))
text = np.stack([np.random.default_rng(i).permutation(V) for i in range(2)])
text = np.concatenate([text, text[:, 3:10]], axis=1)
weights = start(model)
quiet = {"batch_size": 1, "verbose": 0, "shuffle": False}
def ours(): convert.fit_keras(model, text, text[:, ::-1], **quiet, **EXACT)
def keras_fit(): model.fit(text, text[:, ::-1], **quiet)
for optimizer in OPTIMIZERS if ALL else OPTIMIZERS[::2]:
    results = []
    for fits in ((keras_fit, keras_fit), (ours, ours), (ours, keras_fit), (keras_fit, ours)):
        model.set_weights(weights)
        copy = type(optimizer).from_config(optimizer.get_config())
        if copy.gradient_accumulation_steps == 3: copy.exclude_from_weight_decay(var_names=["bias", "embeddings"])
        model.compile(copy, "sparse_categorical_crossentropy")
        for fit in fits: fit()
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        assert int(inner._iterations) == 4
        results.append(model.get_weights())
    for other in results[1:]:
        for one, two, before in zip(results[0], other, weights):
            gap, moved = np.linalg.norm(one - two), np.linalg.norm(one - before)
            assert gap < 2e-3 * moved, (optimizer.name, gap, moved)
    print("equal:", optimizer.name)
for frequency, batches in ((4, None), (2, 2), (None, 4)):
    averages = O.SGD(0.3, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=frequency,
                     gradient_accumulation_steps=batches)
    body = L.Dense(7, kernel_constraint=keras.constraints.MaxNorm(0.5))
    compare("moving averages", simple(body, mask_zero=True), averages, zeros=True, batch_size=2)
for optimizer in (O.Adafactor(), O.Ftrl(), type("Adam", (O.Adam,), {})()):
    model.compile(optimizer, "sparse_categorical_crossentropy")
    try: ours()
    except convert.InputError as error: print("refused:", type(optimizer).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_every_optimizer_takes_the_steps_of_keras_and_continues(every):
    out = run_under_jax(f"ALL = {every}\n" + OPTIMIZERS.replace("convert.InputError", "ValueError"))
    assert out.count("equal:") == (19 if every else 11)
    refused = [line for line in out.splitlines() if line.startswith("refused:")]
    assert len(refused) == 3 and "no Adafactor" in refused[0] and "Adam is defined in __main__" in refused[2]
