"""The optimizer state goes to Keras and back bit for bit, and means the same in both."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from convert_helpers import assert_states_equal, make_optimizer_state
from flax import nnx
from helpers import CHAIN

from convert.files.export import export
from convert.files.source_file import dropped_settings, read_source
from convert.keras_models.reader import read_optimizer
from convert.weights.optimizer_state import from_train_state, to_train_state
from convert.weights.table import language_model_weights, to_keras_weights
from jaxlm.config import TrainConfig
from jaxlm.errors import InputError
from jaxlm.training.optimizer import optimizer
from jaxlm.training.state import TrainState


@pytest.mark.parametrize("name", ["adam", "adagrad"])
@pytest.mark.parametrize(
    ("num_layers", "change"),
    [(1, {}), (2, CHAIN), pytest.param(3, {"projection_size": 4}, marks=pytest.mark.exhaustive)],
)
def test_a_state_comes_back_from_a_keras_file(random_run, tmp_path, name, num_layers, change):
    run = random_run(num_layers, **change)
    state = make_optimizer_state(run.model, name)
    export(run._replace(optimizer=state), tmp_path / "a.keras")
    again = read_optimizer(tmp_path / "a.keras", run.model.config)
    assert again.slots.keys() == state.slots.keys()
    assert_states_equal(again, state)
    lost = dropped_settings(read_source(tmp_path / "a.keras").compiled, keep_optimizer=True)
    assert not any(line.startswith("settings of") for line in lost)


def test_an_epsilon_other_than_that_of_a_run_is_not_kept():
    for kind, lost in (
        (keras.optimizers.Adam(), ["settings of Adam: epsilon=1e-07"]),
        (keras.optimizers.SGD(), []),
    ):
        compiled = {"optimizer": keras.optimizers.serialize(kind)}
        assert dropped_settings(compiled, keep_optimizer=True) == lost


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_state_comes_back_from_a_train_state(random_model, name):
    """With a learning rate as Keras stores it, and Adam's own number of steps: a run counts those since an import."""
    model = random_model(2, projection_size=4)
    state = make_optimizer_state(model, name)._replace(learning_rate=0.14285715, steps=7 if name == "adam" else 3)
    config = TrainConfig(num_sampled=5, optimizer=name, clip_norm=0.0, beta_2=state.beta_2, compute_dtype="float32")
    opt_state = to_train_state(state, TrainState.create(model, config).opt_state)
    assert name != "adam" or {int(table[0].count) for table in opt_state.values()} == {7}
    assert_states_equal(from_train_state(opt_state, config, 1 / 7, 3), state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_step_in_keras_is_the_dense_step_of_optax(random_run, tmp_path, name):
    run = random_run(2)
    state = make_optimizer_state(run.model, name)
    export(run._replace(optimizer=state), tmp_path / "a.keras")
    keras_model = keras.models.load_model(tmp_path / "a.keras", safe_mode=True)
    rng = np.random.default_rng(0)  # distinct inputs: of a repeated one, Keras adds up squares, not gradients
    inputs = rng.permutation(run.model.config.vocab_size)[:15].reshape(3, 5)
    labels = rng.integers(0, run.model.config.vocab_size, (3, 5))

    graphdef, params = nnx.split(run.model)

    def loss(params):
        logits, _ = nnx.merge(graphdef, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    before = language_model_weights(run.model)
    gradients = language_model_weights(nnx.merge(graphdef, jax.grad(loss)(params)))
    tx = optimizer(TrainConfig(optimizer=name, beta_2=state.beta_2), 0.125)
    slots = {slot: jax.tree.map(jnp.asarray, arrays) for slot, arrays in state.slots.items()}
    count = {"count": jnp.int32(7)} if name == "adam" else {}
    first, *rest = tx.init(before)
    updates, _ = tx.update(gradients, (first._replace(**slots, **count), *rest))
    expected = to_keras_weights({key: np.asarray(update) for key, update in updates.items()}, run.model.config)

    start = [variable.numpy() for variable in keras_model.trainable_variables]
    keras_model.train_on_batch(inputs, labels)
    for variable, old, increment in zip(keras_model.trainable_variables, start, expected.values(), strict=True):
        np.testing.assert_allclose(variable.numpy() - old, increment, rtol=2e-4, atol=2e-6, err_msg=variable.path)


DECAY = keras.optimizers.schedules.ExponentialDecay(0.1, 9, 0.5)
OTHERS = {
    "rmsprop": (lambda: keras.optimizers.RMSprop(), "Received: RMSprop"),
    "amsgrad": (lambda: keras.optimizers.Adam(amsgrad=True), "Adam with amsgrad=True"),
    "beta": (lambda: keras.optimizers.Adam(beta_1=0.5), "Adam with beta_1=0.5"),
    "no beta": (lambda: keras.optimizers.Adam(beta_1=0.0), "Adam with beta_1=0.0"),
    "averages": (lambda: keras.optimizers.Adam(use_ema=True), "Adam with use_ema=True"),
    "accumulation": (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), "SGD with gradient_accumulation_ste"),
    "schedule": (lambda: keras.optimizers.SGD(DECAY), "SGD with learning_rate=ExponentialDecay"),
    "frozen": (lambda: keras.optimizers.Adam(), "expected 14 variables.*Received: 10. A frozen layer has none. Leave"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_that_jaxlm_does_not_have_is_refused(random_model, tmp_path, name):
    from convert import to_keras

    make, message = OTHERS[name]
    random = random_model(1)
    model = to_keras(random)
    model.layers[-1].trainable = name != "frozen"
    model.compile(make(), "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((1, 3), int), np.zeros((1, 3), int))
    model.save(tmp_path / "other.keras")
    with pytest.raises(InputError, match=message):
        read_optimizer(tmp_path / "other.keras", random.config)


def test_a_file_without_an_optimizer_is_refused(random_run, tmp_path):
    run = random_run(1)
    export(run, tmp_path / "plain.keras")
    with pytest.raises(InputError, match="has no optimizer state; leave out `keep_optimizer`"):
        read_optimizer(tmp_path / "plain.keras", run.model.config)
