"""The optimizer's state goes to Keras and back bit for bit, and means there what it means here."""

import dataclasses

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

from convert import export, import_keras, keras_reader, runs
from convert.keras_model import Form
from convert.optimizer import OptimizerState, from_train_state, to_train_state
from convert.weights import language_model_weights, to_keras
from jaxlm.config import TrainConfig
from jaxlm.corpus import load_corpus
from jaxlm.errors import InputError
from jaxlm.run import load_config
from jaxlm.train_state import TrainState, optimizer


def make_state(model, name: str) -> OptimizerState:
    """A state of random moments, after 7 steps."""
    rng = np.random.default_rng(3)
    weights = language_model_weights(model)

    def moments(sign: float) -> dict[str, np.ndarray]:
        return {key: (0.01 * np.abs(rng.normal(size=w.shape)) * sign).astype(np.float32) for key, w in weights.items()}

    slots = {"mu": moments(-1.0), "nu": moments(1.0)} if name == "adam" else {"sum_of_squares": moments(1.0)}
    return OptimizerState(name, 7, 0.125, 0.0, slots)


def opt_state_of(state: OptimizerState, model) -> dict:
    train_state = TrainState.create(model, TrainConfig(num_sampled=5, optimizer=state.name))
    return to_train_state(state, train_state.opt_state)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
@pytest.mark.parametrize("change", [{}, {"projection_size": 4, "num_layers": 3}])
def test_state_comes_back_from_a_keras_file(random_run, tmp_path, name, change):
    run = random_run(**({"num_layers": 1} | change))
    state = make_state(run.model, name)
    export.export(run._replace(optimizer=state), tmp_path / "a.keras")
    again = keras_reader.read_optimizer(tmp_path / "a.keras", run.model.config)
    assert again[:4] == state[:4]
    for slot, arrays in state.slots.items():
        assert again.slots[slot].keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(again.slots[slot][key], array)
    config = TrainConfig(num_sampled=5, optimizer=name, learning_rate=0.125, clip_norm=0.0)
    opt_state = opt_state_of(state, run.model)
    assert name != "adam" or {int(table.count) for table in opt_state.values()} == {7}
    jax.tree.map(np.testing.assert_array_equal, from_train_state(opt_state, config, 7).slots, state.slots)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_step_in_keras_is_the_dense_step_of_optax(random_run, tmp_path, name):
    run = random_run(2)
    state = make_state(run.model, name)
    export.export(run._replace(optimizer=state), tmp_path / "a.keras")
    keras_model = keras.models.load_model(tmp_path / "a.keras", safe_mode=True)
    rng = np.random.default_rng(0)  # inputs all different: of one that comes twice Keras adds squares, not their sum's
    inputs = rng.permutation(run.model.config.vocab_size)[:15].reshape(3, 5)
    labels = rng.integers(0, run.model.config.vocab_size, (3, 5))

    graphdef, params = nnx.split(run.model)

    def loss(params):
        logits, _ = nnx.merge(graphdef, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    before = language_model_weights(run.model)
    gradients = language_model_weights(nnx.merge(graphdef, jax.grad(loss)(params)))
    transform = optimizer(TrainConfig(optimizer=name))
    slots = {slot: jax.tree.map(jnp.asarray, arrays) for slot, arrays in state.slots.items()}
    count = {"count": jnp.int32(7)} if name == "adam" else {}
    updates, _ = transform.update(gradients, transform.init(before)._replace(**slots, **count))
    expected = to_keras({key: -0.125 * np.asarray(update) for key, update in updates.items()}, run.model.config)

    start = [variable.numpy() for variable in keras_model.trainable_variables]
    keras_model.train_on_batch(inputs, labels)
    for variable, old, increment in zip(keras_model.trainable_variables, start, expected.values(), strict=True):
        np.testing.assert_allclose(variable.numpy() - old, increment, rtol=2e-4, atol=2e-6, err_msg=variable.path)


def test_run_to_keras_to_run_keeps_the_optimizer(run_dir, corpus_dir, tmp_path):
    out, again = tmp_path / "a.keras", tmp_path / "again"
    run = runs.load(run_dir, keep_optimizer=True)
    export.export(run, out)
    lines = list(import_keras.import_run(out, again, run_dir / "vocabulary.json", "<unk>", "<eos>", "words", True))
    assert any(f"adam goes on after {run.optimizer.steps} steps" in line for line in lines)
    kept = runs.load(again, keep_optimizer=True)
    jax.tree.map(np.testing.assert_array_equal, kept.optimizer.slots, run.optimizer.slots)
    config = load_config(again)
    assert (config.train.optimizer, config.train.learning_rate) == ("adam", 0.03)
    # `jaxlm train` begins with it, whatever else is changed
    corpus = load_corpus(corpus_dir)
    train = dataclasses.replace(config.train, batch_size=3, sequence_length=4, steps=1, learning_rate=1e-9)
    fit(corpus, again, config.model, train, progress=False)
    trained = runs.load(again, keep_optimizer=True)
    nu, before = (side.optimizer.slots["nu"]["lstms/0/kernel"] for side in (trained, kept))
    assert np.all(nu >= 0.998 * before) and not np.array_equal(nu, before)


def test_ids_of_the_keras_model_keep_their_moments(random_run, tmp_path):
    """Re-ranked on the way in, put back on the way out: the moments with the weights."""
    run = random_run(1)
    state, vocab_size = make_state(run.model, "adagrad"), run.model.config.vocab_size
    export.export(run._replace(optimizer=state), tmp_path / "a.keras")
    counts = np.random.default_rng(0).permutation(vocab_size) + 1
    lines = [f"{word}\t{count}" for word, count in zip(run.words, counts, strict=True)]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    arguments = (tmp_path / "words.txt", "<unk>", "<eos>", "words", True)
    assert any(
        "re-ranked" in line for line in import_keras.import_run(tmp_path / "a.keras", tmp_path / "run", *arguments)
    )
    again = runs.load(tmp_path / "run", keep_optimizer=True)
    assert again.words == run.words
    jax.tree.map(np.testing.assert_array_equal, again.optimizer.slots, state.slots)


@pytest.mark.parametrize("words", [22, 24])
def test_words_that_are_too_few_or_too_many_are_refused_before_anything_is_re_ranked(random_run, tmp_path, words):
    run = random_run(1)
    export.export(run._replace(optimizer=make_state(run.model, "adam")), tmp_path / "a.keras")
    lines = [f"{word}\t{n}" for n, word in enumerate(["<unk>", "<eos>", *(f"w{n}" for n in range(words - 2))])]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    arguments = (tmp_path / "words.txt", "<unk>", "<eos>", "words", True)
    with pytest.raises(InputError, match=f"{words} words, and the model 23"):
        list(import_keras.import_run(tmp_path / "a.keras", tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_kept_is_refused(random_run, run_dir, tmp_path):
    run = random_run(1, projection_size=5, tied=True)
    arguments = (tmp_path / "run", run_dir / "vocabulary.json", "<unk>", "<eos>", "words", True)
    with pytest.raises(InputError, match="two tables in Keras"):
        export.export(run._replace(optimizer=make_state(run.model, "adam")), tmp_path / "a.keras")
    run = random_run(1)
    with pytest.raises(InputError, match="--keep-optimizer"):
        export.export(run._replace(optimizer=make_state(run.model, "adam")), tmp_path / "a.h5")
    for form in (Form(single_step=True), Form(dtype="float16")):
        with pytest.raises(InputError, match="over sequences"):
            export.export(run._replace(optimizer=make_state(run.model, "adam")), tmp_path / "a.keras", form=form)
    export.export(run, tmp_path / "plain.keras")
    with pytest.raises(InputError, match="has no optimizer"):
        keras_reader.read_optimizer(tmp_path / "plain.keras", run.model.config)
    model = keras.models.load_model(tmp_path / "plain.keras")
    for other in (keras.optimizers.RMSprop(), keras.optimizers.Adam(amsgrad=True), keras.optimizers.Adam(beta_1=0.5)):
        model.compile(other, "sparse_categorical_crossentropy")
        model.train_on_batch(np.zeros((1, 3), int), np.zeros((1, 3), int))
        model.save(tmp_path / "other.keras")
        with pytest.raises(InputError, match="cannot be kept"):
            keras_reader.read_optimizer(tmp_path / "other.keras", run.model.config)
    with pytest.raises(InputError, match=r"only a \.keras file"):
        list(import_keras.import_run(tmp_path / "a.h5", *arguments))
    assert not (tmp_path / "run").exists()
