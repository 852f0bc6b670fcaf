"""What a live Keras model was compiled with: in jaxlm's settings, and the state of its optimizer, both ways."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from convert.keras_models.live_layers import as_array, weight_variables
from convert.weights.optimizer_state import KERAS_OPTIMIZERS, SLOTS, OptimizerState, unusual_settings
from convert.weights.table import from_keras_weights, to_keras_weights, weight_table
from jaxlm.config import ModelConfig, Optimizer, ScheduleConfig, TrainConfig

KERAS_SLOTS: dict[Optimizer, tuple[str, ...]] = {  # attributes of Keras' optimizers, in the order of SLOTS
    "adam": ("_momentums", "_velocities"),
    "adagrad": ("_accumulators",),
    "sgd": (),
}
USED_SETTINGS = {"learning_rate", "clipnorm", "global_clipnorm", "initial_accumulator_value"}
LOSSES = {  # as a name, a function or an object
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "SparseCategoricalCrossentropy",
    "CategoricalCrossentropy",
}


class Compiled(NamedTuple):
    """What `model.compile` was given, as far as jaxlm has it."""

    optimizer: Optimizer = "adam"
    learning_rate: Callable[[int], float] = lambda step: ScheduleConfig.learning_rate  # of a step, from 0
    clip_norm: float = TrainConfig.clip_norm
    clip_each: bool = False
    initial_accumulator_value: float = TrainConfig.initial_accumulator_value
    reduction: str | None = "auto"  # of the loss, in Keras' words
    ignore_class: int | None = None  # a label that does not count
    unused: tuple[str, ...] = ()  # settings that have no effect, in words
    has_state: bool = False  # whether the optimizer is one of jaxlm's


def read_compiled(model: Any, logits: bool) -> Compiled:
    """Reads what a live model was compiled with; jaxlm's defaults if it was not.

    Args:
      model: of Keras 3 or `tf_keras`.
      logits: whether the model ends without a softmax.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not hasattr(optimizer, "get_config"):
        return Compiled()
    compiled, unused = _read_optimizer(optimizer)
    loss_settings, of_loss = _read_loss(getattr(model, "loss", None), logits)
    return compiled._replace(**loss_settings, unused=(*unused, *of_loss, *_metrics(model)))


def _read_optimizer(optimizer: Any) -> tuple[Compiled, list[str]]:
    kind, settings = type(optimizer).__name__, optimizer.get_config()
    known = kind in KERAS_OPTIMIZERS and "legacy" not in type(optimizer).__module__
    name = KERAS_OPTIMIZERS[kind] if known else "adam"
    unused = [] if known else [f"optimizer {kind} (Adam takes its place)"]
    if known:
        unused = [f"{key}={value}" for key, value in unusual_settings(settings) if key not in USED_SETTINGS]
    schedule = getattr(optimizer, "_learning_rate", None)

    def learning_rate(step: int) -> float:
        if callable(schedule) and hasattr(schedule, "get_config"):
            return float(as_array(schedule(step)))
        return float(as_array(optimizer.learning_rate))  # read at each step, since callbacks change it

    each, together = settings.get("clipnorm"), settings.get("global_clipnorm")
    compiled = Compiled(
        name,
        learning_rate,
        clip_norm=float(each or together or 0.0),
        clip_each=bool(each),
        initial_accumulator_value=float(settings.get("initial_accumulator_value", 0.0)),
        has_state=known,
    )
    return compiled, unused


def _read_loss(loss: Any, logits: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns what of the compiled loss is honoured, and what is not."""
    if isinstance(loss, list | tuple) and len(loss) == 1:
        loss = loss[0]
    if loss is None:
        return {}, []
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if name not in LOSSES:
        return {}, [f"loss {name}"]
    settings = loss.get_config() if hasattr(loss, "get_config") else {}
    unused = [f"label_smoothing={settings['label_smoothing']}"] if settings.get("label_smoothing") else []
    if settings.get("from_logits", logits) != logits:
        end = "logits" if logits else "a softmax"
        unused.append(f"from_logits={settings['from_logits']}, since the model ends in {end}")
    return {"reduction": settings.get("reduction", "auto"), "ignore_class": settings.get("ignore_class")}, unused


def _metrics(model: Any) -> list[str]:
    """Returns the compiled metrics and weights of losses in words; none of them is computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about functions that could not be read back
        config = model.get_compile_config() or {}
    return [f"{key}={config[key]}" for key in ("metrics", "weighted_metrics", "loss_weights") if config.get(key)]


def keras_of(model: Any) -> Any:
    """Returns the module that a live model comes from: `keras` or `tf_keras`."""
    origins = [kind.__module__.split(".")[0] for kind in type(model).__mro__]
    return sys.modules["tf_keras" if "tf_keras" in origins else "keras"]


def read_optimizer_state(
    model: Any, layers: Sequence[Any], compiled: Compiled, config: ModelConfig
) -> OptimizerState | None:
    """Reads the state of a live model's optimizer; None if it has none yet.

    Args:
      model: compiled.
      layers: those with weights, in order.
      compiled: what the model was compiled with.
      config: of the language model.
    """
    if not compiled.has_state or not _is_built(model.optimizer) or not int(as_array(model.optimizer.iterations)):
        return None
    names = [weight.keras for weight in weight_table(config)]
    slots = {}
    for slot, variables in _slots(model, compiled):
        arrays = []
        for weight, index in _trainable_index(model, layers):
            arrays.append(np.zeros(weight.shape, np.float32) if index is None else as_array(variables[index]))
        slots[slot] = from_keras_weights(dict(zip(names, arrays, strict=True)), config)
    steps = int(as_array(model.optimizer.iterations))
    return OptimizerState(compiled.optimizer, steps, compiled.learning_rate(steps), compiled.clip_norm, slots)


def write_optimizer_state(
    model: Any, layers: Sequence[Any], compiled: Compiled, state: OptimizerState, config: ModelConfig
) -> None:
    """Puts a state into a live model's optimizer, in place; the inverse of `read_optimizer_state`."""
    if not _is_built(model.optimizer):
        model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(state.steps)
    for slot, variables in _slots(model, compiled):
        arrays = to_keras_weights(state.slots[slot], config).values()
        for (_, index), array in zip(_trainable_index(model, layers), arrays, strict=True):
            if index is not None:
                variables[index].assign(array)


def _is_built(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "built", getattr(optimizer, "_built", False)))  # Keras 3, tf_keras


def _slots(model: Any, compiled: Compiled) -> list[tuple[str, Any]]:
    attributes = KERAS_SLOTS[compiled.optimizer]
    return [
        (slot, getattr(model.optimizer, attribute))
        for slot, attribute in zip(SLOTS[compiled.optimizer], attributes, strict=True)
    ]


def _trainable_index(model: Any, layers: Sequence[Any]) -> list[tuple[Any, int | None]]:
    """Returns each weight and its place among the model's trainable variables; None if it is not trained."""
    index = {id(variable): i for i, variable in enumerate(model.trainable_variables)}
    return [(weight, index.get(id(weight))) for layer in layers for weight in weight_variables(layer)]
