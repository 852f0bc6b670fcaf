"""Callbacks of Keras during `fit_keras`, which calls them with epochs, logs and weights."""

from collections.abc import Sequence
from typing import Any

from jaxlm.errors import InputError

BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)
LOGS_ONLY = {"CSVLogger", "History", "LearningRateScheduler", "ProgbarLogger", "ReduceLROnPlateau", "TerminateOnNaN"}


def flat_callbacks(callbacks: Any) -> list[Any]:
    """Returns the callbacks of one, of a nested list or of a `CallbackList`, as a list."""
    if callbacks is None:
        return []
    inner = callbacks if isinstance(callbacks, list | tuple) else getattr(callbacks, "callbacks", None)
    return [callbacks] if inner is None else [flat for each in inner for flat in flat_callbacks(each)]


def callback_list(keras: Any, model: Any, callbacks: Sequence[Any], progress: bool, **params: Any) -> Any:
    """Returns a `CallbackList` with a `History`, and a progress bar if asked for.

    Args:
      keras: the module of the model, `keras` or `tf_keras`.
      model: that the callbacks see.
      callbacks: of the user.
      progress: whether to show a progress bar.
      params: `epochs`, `steps` and `verbose`.

    Raises:
      InputError: a callback acts on batches; names it.
    """
    for callback in callbacks:
        hooks = _batch_hooks(callback)
        if hooks:
            raise InputError(
                f"Invalid `callbacks`: expected callbacks that act at the end of an epoch, such as EarlyStopping,"
                f" ModelCheckpoint and CSVLogger. Received: {type(callback).__name__}, which has {hooks[0]};"
                " leave it out."
            )
    return keras.callbacks.CallbackList(callbacks, add_history=True, add_progbar=progress, model=model, **params)


def _batch_hooks(callback: Any) -> list[str]:
    """Returns the hooks of a callback that would need the weights after each batch."""
    if type(callback).__name__ in LOGS_ONLY or getattr(callback, "save_freq", None) == "epoch":
        return []
    base = next((kind for kind in type(callback).__mro__ if kind.__name__ == "Callback"), None)
    return [
        hook
        for hook in BATCH_HOOKS
        if hook in vars(callback) or getattr(type(callback), hook, None) is not getattr(base, hook, None)
    ]


def may_read_weights(callbacks: Sequence[Any]) -> bool:
    """Whether a callback may look at the model's weights at the end of an epoch."""
    return any(type(callback).__name__ not in LOGS_ONLY for callback in callbacks)
