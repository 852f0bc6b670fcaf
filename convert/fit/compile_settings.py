"""The settings of `model.compile` besides the optimizer and the metrics: the loss, and settings without effect."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from convert.keras_models.live_layers import library_name
from jaxlm.errors import InputError

LOSSES = {  # as a name, a function or an object
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "SparseCategoricalCrossentropy",
    "CategoricalCrossentropy",
}


class CompiledLoss(NamedTuple):
    """The supported settings of the loss that a model was compiled with."""

    reduction: str | None = "auto"  # in Keras' words
    ignore_class: int | None = None  # a label that does not count
    unused: tuple[str, ...] = ()  # settings that have no effect, in words


def read_loss(model: Any, logits: bool) -> CompiledLoss:
    """Reads the loss that a live model was compiled with.

    Args:
      model: of Keras 3 or `tf_keras`.
      logits: whether the model ends without a softmax.

    Raises:
      InputError: it has label smoothing.
    """
    loss = getattr(model, "loss", None)
    if isinstance(loss, Mapping | list | tuple) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, Mapping) else loss
    compiled = getattr(model, "_compile_loss", None) or getattr(model, "compiled_loss", None)
    weights = getattr(compiled, "_user_loss_weights", None)
    unused = [f"loss_weights={weights}"] if weights else []
    if loss is None:
        return CompiledLoss(unused=tuple(unused))
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if name not in LOSSES or not (isinstance(loss, str) or library_name(loss)):
        return CompiledLoss(unused=(f"loss {name}", *unused))
    settings = loss.get_config() if hasattr(loss, "get_config") else {}
    if settings.get("label_smoothing"):
        raise InputError(
            f"Invalid `loss`: expected {name} without label_smoothing, which has a gradient in all rows of the last"
            " layer in each step. Leave it out, or train with model.fit."
            f" Received: label_smoothing={settings['label_smoothing']}."
        )
    from_logits = settings.get("from_logits", False)
    if from_logits != logits:
        end = "logits" if logits else "a softmax"
        unused.insert(0, f"from_logits={from_logits}, since the model ends in {end}")
    return CompiledLoss(settings.get("reduction", "auto"), settings.get("ignore_class"), tuple(unused))


def keras_of(model: Any) -> Any:
    """Returns the module that a live model comes from: `keras` or `tf_keras`."""
    origins = [kind.__module__.split(".")[0] for kind in type(model).__mro__]
    return sys.modules["tf_keras" if "tf_keras" in origins else "keras"]
