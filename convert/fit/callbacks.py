"""Keras callbacks during `fit_keras`: those that use the model, and those that act on batches."""

import string
from typing import Any, NamedTuple

import keras

from convert.keras_models.live_layers import definer, library_name
from jaxlm.errors import InputError, reason, require

BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)
ALIASES = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}
SAVERS = {"ModelCheckpoint", "BackupAndRestore", "OrbaxCheckpoint"}
LOGS_ONLY = {"CSVLogger", "History", "LearningRateScheduler", "ProgbarLogger", "ReduceLROnPlateau", "TerminateOnNaN"}
NEED_OPTIMIZER = {"LearningRateScheduler", "ReduceLROnPlateau", "SwapEMAWeights"}
NOT_COMPILED = (
    "reads `model.optimizer`, but the model is not compiled; first call model.compile with an optimizer, such as"
    " model.compile('adam', 'sparse_categorical_crossentropy')."
)


class Hooks(NamedTuple):
    """The callbacks of a call."""

    list: Any  # Keras' `CallbackList`
    observers: tuple[Any, ...]  # callbacks that may read or change the model
    on_batches: bool  # whether one of them acts on batches

    def observes(self, hook: str) -> bool:
        """Whether a callback may read or change the model in a hook."""
        return any(_observes(callback, hook) for callback in self.observers)


def open_callbacks(
    module: Any, model: Any, callbacks: Any, modes: dict[str, str], progress: bool, **params: Any
) -> Hooks:
    """Opens the callbacks of a call, with a `History`, and a progress bar if `progress`.

    Args:
      module: of the model, `keras` or `tf_keras`.
      model: that the callbacks see.
      callbacks: of the user: one, any nesting of them, a `CallbackList`, or None.
      modes: the names that an epoch logs, and whether "min" or "max" is better.
      progress: whether to show a progress bar.
      params: `epochs`, `steps` and `verbose`.

    Raises:
      InputError: one of them is not a callback, or needs a metric that is not logged.
    """
    found = getattr(callbacks, "callbacks", callbacks)
    flat = [callback for callback in keras.tree.flatten(found) if callback is not None]
    may_log_more = False  # whether a callback so far may add to the logs
    for callback in flat:
        is_callback = hasattr(callback, "on_epoch_end") and hasattr(callback, "set_model")
        require(is_callback, "callbacks", "callbacks of Keras", type(callback).__name__)
        may_log_more |= "" in _owners(callback, "on_epoch_end")
        if _is_of_keras(callback) and not may_log_more:
            _check_logs(callback, set(modes))
        if library_name(callback) in NEED_OPTIMIZER and getattr(model, "optimizer", None) is None:
            raise InputError(f"Invalid `callbacks`: {type(callback).__name__} {NOT_COMPILED}")
        if _is_of_keras(callback) and getattr(callback, "mode", None) == "auto":
            # Keras would look at metrics that only `fit` builds
            callback.mode = modes.get(callback.monitor, "auto")
    listed = module.callbacks.CallbackList(flat, add_history=True, add_progbar=progress, model=model, **params)
    observers = tuple(callback for callback in flat if library_name(callback) not in LOGS_ONLY)
    return Hooks(listed, observers, any(_overrides(callback, hook) for callback in observers for hook in BATCH_HOOKS))


def _is_of_keras(callback: Any) -> bool:
    """Whether a callback is one of Keras' or extends one; attributes of any other may mean anything."""
    return not {library_name(kind) for kind in type(callback).__mro__} <= {"", "Callback"}


def _check_logs(callback: Any, logs: set[str]) -> None:
    """Raises `InputError` if a callback of Keras monitors a metric that is not logged, or has it in a file name."""
    if getattr(callback, "save_freq", "epoch") != "epoch":
        return  # the metrics of a batch are not known in advance
    path = str(getattr(callback, "filepath", None) or "")
    fields = {field for _, field, _, _ in string.Formatter().parse(path) if field} - {"epoch", "batch"}
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str) and getattr(callback, "save_best_only", True):
        fields.add(monitor)
    missing = sorted(fields - logs - {"learning_rate", "lr"})
    if missing:
        raise InputError(
            f"Invalid `callbacks`: {type(callback).__name__} reads {missing[0]!r}, which fit_keras does not log."
            f" Expected one of {sorted(logs)}."
        )


def _observes(callback: Any, hook: str) -> bool:
    """Whether a callback may read or change the model in a hook, now."""
    if not _overrides(callback, hook):
        return False
    if hook in BATCH_HOOKS and _owners(callback, hook) <= SAVERS:  # it counts batches, and reads when it saves
        freq = callback.save_freq
        return bool(getattr(callback, "_batches_seen_since_last_saving", freq) + 1 >= freq)
    return True


def _overrides(callback: Any, hook: str) -> bool:
    """Whether a callback implements a hook."""
    owners = _owners(callback, hook)
    is_idle = hook in BATCH_HOOKS and owners <= SAVERS and getattr(callback, "save_freq", None) == "epoch"
    return bool(owners) and not is_idle


def _owners(callback: Any, hook: str) -> set[str]:
    """Returns the classes of Keras that implement a hook of a callback, without `Callback`; "" is a user's."""
    return {definer(callback, name) for name in (hook, ALIASES.get(hook, hook))} - {"Callback"}


def check_compiled(model: Any, error: Exception) -> None:
    """Raises `InputError` if a callback failed because a model that is not compiled has no optimizer."""
    if getattr(model, "optimizer", None) is not None:
        return
    of_none = isinstance(error, AttributeError) and bool(error.name) and error.obj is None  # of `tf_keras`
    if "optimizer" in str(error).lower() or (of_none and hasattr(model, "optimizer")):
        raise InputError(f"A callback failed ({reason(error)}): it {NOT_COMPILED}") from error
