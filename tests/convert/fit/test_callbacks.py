"""Callbacks during `fit_keras` against Keras' own `fit`: what they see, change and are called with."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
from fit_helpers import (
    EXACT,
    MODULES,
    QUIET,
    make,
    sequences,
)

from convert import fit_keras
from jaxlm.errors import InputError

HOOKS = [
    f"on_{part}_{end}" for part in ("train", "epoch", "test", "train_batch", "test_batch") for end in ("begin", "end")
]


class Calls(keras.callbacks.Callback):
    """Records every hook, and the sum of the weights at each."""

    def __init__(self):
        super().__init__()
        self.calls, self.sums = [], []
        for hook in HOOKS:
            setattr(self, hook, self.recorder(hook))

    def recorder(self, hook):
        def record(*arguments, **logs):
            self.calls.append((hook, *(each for each in arguments if isinstance(each, int))))
            self.sums.append(sum(float(np.abs(array).sum()) for array in self.model.get_weights()))

        return record


class Halve(keras.callbacks.Callback):
    """Changes the weights in a hook."""

    def __init__(self, hook):
        super().__init__()
        setattr(
            self, hook, lambda *_, **logs: self.model.set_weights([array / 2 for array in self.model.get_weights()])
        )


def both(callbacks, **arguments):
    """Trains with Keras and with `fit_keras`; returns models, histories and callbacks of each."""
    results = []
    for call in (keras.Model.fit, fit_keras):
        model, (x, y) = make(), sequences()
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        made, exact = callbacks(), EXACT if call is fit_keras else {}
        history = call(model, x, y, **QUIET, **exact, shuffle=False, callbacks=made, **arguments).history
        results.append((model, history, made))
    return results


def test_every_hook_is_called_as_in_keras_with_the_weights_of_the_last_step():
    (_, theirs, their_calls), (_, ours, our_calls) = both(
        lambda: [Calls()], epochs=3, validation_data=sequences(), validation_freq=2
    )
    assert our_calls[0].calls == their_calls[0].calls
    np.testing.assert_allclose(our_calls[0].sums, their_calls[0].sums, rtol=1e-5)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_end", "on_test_begin"])
def test_weights_that_a_callback_sets_are_taken_over(hook):
    (theirs, _, _), (ours, _, _) = both(lambda: [Halve(hook)], epochs=2, validation_data=sequences())
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freq", ["epoch", 2])
def test_checkpoints_hold_the_same_steps_as_those_of_keras(tmp_path, freq):
    folders = iter([tmp_path / "keras", tmp_path / "jaxlm"])

    def callbacks():
        folder = next(folders)
        name = "{epoch}.weights.h5" if freq == "epoch" else "{epoch}-{batch}.weights.h5"
        return [keras.callbacks.ModelCheckpoint(folder / name, save_freq=freq, save_weights_only=True)]

    (model, _, _), _ = both(callbacks, epochs=2)
    names = [path.name for path in sorted((tmp_path / "keras").glob("*.h5"))]
    assert names and names == [path.name for path in sorted((tmp_path / "jaxlm").glob("*.h5"))]
    for name in names:
        saved = []
        for folder in ("keras", "jaxlm"):
            model.load_weights(tmp_path / folder / name)
            saved.append(model.get_weights())
        for one, other in zip(*saved, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("val_accuracy", mode="max"),
        keras.callbacks.ModelCheckpoint("x.keras", monitor="val_accuracy", mode="max", save_best_only=True),
        keras.callbacks.ModelCheckpoint("{epoch}-{val_accuracy:.2f}.keras"),
        keras.callbacks.ReduceLROnPlateau("val_loss"),  # without validation
    ],
)
def test_a_callback_that_waits_for_what_is_not_logged_is_refused_before_the_first_step(callback):
    model = make()
    before = model.get_weights()
    with pytest.raises(InputError, match=f"{type(callback).__name__} reads 'val_.*does not log"):
        fit_keras(model, *sequences(), **QUIET, callbacks=[callback])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["LearningRateScheduler", "ReduceLROnPlateau", "LambdaCallback"])
def test_a_callback_that_reads_the_optimizer_needs_a_compiled_model(module, name):
    model = make(MODULES[module])
    arguments = {
        "LearningRateScheduler": [lambda epoch, rate: rate],
        "ReduceLROnPlateau": ["loss"],
        "LambdaCallback": [lambda epoch, logs: model.optimizer.learning_rate],
    }
    callback = getattr(MODULES[module].callbacks, name)(*arguments[name])
    with pytest.raises(InputError, match="the model is not compiled; first call model.compile with an optimizer"):
        fit_keras(model, *sequences(), **QUIET, callbacks=[callback])


class Bleu(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["val_bleu"] = 1.0


class BleuStopping(keras.callbacks.EarlyStopping):
    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs | {"val_bleu": 1.0})


def test_callbacks_that_keras_accepts_are_accepted(tmp_path):
    checkpoint = type("Checkpoint", (keras.callbacks.ModelCheckpoint,), {})(tmp_path / "x.keras")  # saves always
    stopping = keras.callbacks.EarlyStopping("val_bleu", mode="max", patience=1)  # logged by a callback before
    own = BleuStopping("val_bleu", mode="max", patience=1)
    for callbacks in ([checkpoint, Bleu(), stopping], [own]):
        history = fit_keras(make(), *sequences(), **QUIET, epochs=4, callbacks=callbacks)
        assert len(history.epoch) == 2
    assert (tmp_path / "x.keras").exists()


@pytest.mark.parametrize(
    "nest", [lambda one: one, lambda one: [[one]], lambda one: keras.callbacks.CallbackList([one])]
)
def test_callbacks_are_flattened(nest):
    model, recorder = make(), Recorder()
    model.compile("sgd", "sparse_categorical_crossentropy")
    fit_keras(model, *sequences(), **QUIET, callbacks=nest(recorder), class_weight=None)
    assert len(recorder.seen) == 1


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(
            (epoch, sorted(logs), self.model.get_weights()[0].copy(), int(self.model.optimizer.iterations))
        )


def test_callbacks_see_epochs_logs_and_weights(tmp_path):
    model, recorder = make(), Recorder()
    model.compile("adam", "sparse_categorical_crossentropy")
    before = model.get_weights()[0]
    callbacks = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1)),
        recorder,
    ]
    x, y = sequences()
    history = fit_keras(model, x, y, num_sampled=9, **QUIET, epochs=9, validation_data=(x, y), callbacks=callbacks)
    assert history.epoch == [0, 1]  # EarlyStopping
    assert [(epoch, logs, steps) for epoch, logs, _, steps in recorder.seen] == [
        (epoch, ["learning_rate", "loss", "val_loss"], 3 * (epoch + 1)) for epoch in range(2)
    ]
    assert not np.array_equal(before, recorder.seen[0][2])
    assert not np.array_equal(recorder.seen[0][2], recorder.seen[1][2])
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "1.keras").get_weights()[0], recorder.seen[0][2])
    np.testing.assert_array_equal(model.get_weights()[0], recorder.seen[1][2])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize("module", MODULES)
def test_the_best_weights_are_restored(module):
    module = MODULES[module]
    model = make(module)
    model.compile(module.optimizers.SGD(300.0), "sparse_categorical_crossentropy")
    x, y = sequences()
    stopping = module.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    losses = fit_keras(model, x, y, **QUIET, epochs=9, validation_data=(x, y), callbacks=[stopping]).history["val_loss"]
    assert len(losses) < 9
    assert np.argmin(losses) < len(losses) - 1
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), min(losses), rtol=1e-3)


def test_weights_are_back_after_ctrl_c():
    model = make()
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    before = model.get_weights()

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_keras(model, *sequences(), **QUIET, epochs=1000, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert int(model.optimizer.iterations) == 4  # one epoch, and the step in which it came
    assert all(not np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def test_it_runs_outside_the_main_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(fit_keras(make(), *sequences(), **QUIET)))
    thread.start()
    thread.join()
    assert histories[0].history["loss"]


def test_a_callback_can_set_the_step_of_the_optimizer():
    class Restored(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.optimizer.iterations.assign(40)

    model = make()
    model.compile("adam", "sparse_categorical_crossentropy")
    fit_keras(model, *sequences(), epochs=2, num_sampled=9, **QUIET, callbacks=[Restored()])
    assert int(model.optimizer.iterations) == 43


@pytest.mark.parametrize("name", ["History", "ModelCheckpoint"])
def test_the_name_of_a_callback_does_not_make_it_one_of_keras(name):
    class Callback(Calls):
        save_freq, monitor, mode, filepath = "epoch", "val_bleu", "auto", "{bleu}"  # of its own, too

        def on_train_batch_end(self, batch, logs=None):
            self.model.set_weights([array / 2 for array in self.model.get_weights()])

    (theirs, _, _), (ours, _, _) = both(lambda: [type(name, (Callback,), {})()], epochs=2)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
