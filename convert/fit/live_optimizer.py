"""`LiveOptimizer`: the optimizer that a live model was compiled with; its settings, its learning rate and its state."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from convert.fit.optimizers import OPTIMIZERS, KerasOptimizer
from convert.keras_models.live_layers import as_array, library_name
from jaxlm.config import ScheduleConfig, TrainConfig
from jaxlm.errors import InputError

DEFAULT = KerasOptimizer("Adam", (("amsgrad", False), ("beta_1", 0.9), ("beta_2", 0.999), ("epsilon", 1e-7)))
HOW = "Compile the model with one of: " + ", ".join(OPTIMIZERS) + "."


class LiveOptimizer(NamedTuple):
    """The optimizer of a live model."""

    rule: KerasOptimizer = DEFAULT
    outer: Any = None  # as compiled; None if the model is not
    inner: Any = None  # inside of wrappers, such as LossScaleOptimizer
    clip_norm: float = TrainConfig.clip_norm
    clip_each: bool = False
    unused: tuple[str, ...] = ()  # settings without effect, in words
    overwrite_frequency: int | None = None  # updates after which moving averages replace the weights

    @property
    def has_state(self) -> bool:
        """Whether its state is read and written."""
        return self.inner is not None and not _is_legacy(self.inner)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, from 0. It is read at each step, since callbacks change it.

        Schedules count batches, also those of a group with `gradient_accumulation_steps`, as in Keras.
        """
        if self.inner is None:
            return ScheduleConfig.learning_rate
        rate = getattr(self.inner, "_learning_rate", None)
        rate = self.inner.learning_rate if rate is None else rate
        if callable(rate):
            return float(as_array(rate(step) if hasattr(rate, "get_config") else rate()))
        return float(as_array(self.inner.learning_rate))

    @property
    def _counter(self) -> Any:
        """The variable that counts steps; with `gradient_accumulation_steps`, `iterations` counts updates."""
        return self.inner.iterations if self.rule.batches == 1 else self.inner._iterations

    def steps(self) -> int:
        """Returns the number of steps it has done, one per batch."""
        return 0 if self.inner is None else int(as_array(self._counter))

    def set_steps(self, steps: int, u_product: float) -> None:
        """Sets the number of steps, and the product that Nadam keeps."""
        if self.inner is not None:
            self._counter.assign(steps)
            if self.has_state and hasattr(self.inner, "_u_product"):
                self.inner._u_product.assign(u_product)

    def u_product(self) -> float:
        """Returns the product that Nadam keeps."""
        product = getattr(self.inner, "_u_product", None)
        return 1.0 if product is None else float(as_array(product))

    def overwrites(self, step: int) -> bool:
        """Whether moving averages replace the weights after a step, from 0; the same for all batches of an update."""
        frequency = self.overwrite_frequency
        return frequency is not None and (step // self.rule.batches + 1) % frequency == 0

    def build(self, model: Any) -> None:
        """Makes the variables of its state, if there are none yet."""
        if self.has_state and not self.is_built():
            owner = self.outer if hasattr(self.outer, "built") else self.inner
            try:
                owner.build(model.trainable_variables)
            except RuntimeError as error:  # a distribution strategy
                raise InputError(
                    "The optimizer has no variables yet, and cannot make them here; call"
                    f" model.optimizer.build(model.trainable_variables) inside strategy.scope(). {error}"
                ) from error

    def is_built(self) -> bool:
        """Whether it has variables."""
        return bool(getattr(self.inner, "built", getattr(self.inner, "_built", False)))  # Keras 3, tf_keras

    def finalize(self, model: Any) -> None:
        """Puts the moving averages into the model, as `model.fit` does at its end."""
        if self.rule.has_averages:
            self.outer.finalize_variable_values(model.trainable_variables)

    def slots_of(self, variable: Any) -> Iterator[tuple[str, Any]]:
        """Yields the name and the variable of each slot of a trained weight."""
        if not self.has_state or not self.is_built():
            return
        for slot in self.rule.slots:
            found = getattr(self.inner, f"_{slot}", None)
            yield slot, (getattr(self.inner, slot) if found is None else found)[self._index_of(variable)]

    def weight_decay_of(self, variable: Any) -> float:
        """Returns the weight decay of a trained weight, 0 if `exclude_from_weight_decay` names it."""
        return self.rule.weight_decay if self.inner is None or self.inner._use_weight_decay(variable) else 0.0

    def accumulator_of(self, variable: Any) -> Any:
        """Returns the variable with the waiting gradient of a trained weight."""
        return self.inner._accumulated_gradients[self._index_of(variable)]

    def _index_of(self, variable: Any) -> int:
        try:
            if hasattr(self.inner, "_get_variable_index"):
                return int(self.inner._get_variable_index(variable))
            return int(self.inner._index_dict[self.inner._var_key(variable)])
        except KeyError as error:
            raise InputError(
                f"The optimizer has no state for {variable.path if hasattr(variable, 'path') else variable.name}, which"
                " was not trainable when its state was made; compile the model again."
            ) from error


def open_optimizer(model: Any) -> LiveOptimizer:
    """Opens the optimizer that a model was compiled with; Adam if it was not.

    Raises:
      InputError: it is not one of Keras, is not element-wise, or has an unsupported setting.
    """
    outer = getattr(model, "optimizer", None)
    if outer is None or not hasattr(outer, "get_config"):
        return LiveOptimizer()
    inner = outer
    while getattr(inner, "inner_optimizer", None) is not None:
        inner = inner.inner_optimizer
    kind, legacy = type(inner).__name__, _is_legacy(inner)
    if kind not in OPTIMIZERS or (legacy and kind not in ("Adam", "SGD", "Adagrad")):
        raise InputError(f"Invalid `optimizer`: fit_keras has no {kind}, whose update is not element-wise. {HOW}")
    if not library_name(inner):
        raise InputError(f"Invalid `optimizer`: {kind} is defined in {type(inner).__module__}, not in Keras. {HOW}")
    settings = dict(inner.get_config())
    unused = [f"the state of the legacy optimizer {kind}, which is initialized"] if legacy else []
    if legacy and settings.get("decay"):
        raise InputError(f"Invalid `optimizer`: expected {kind} without decay. Compile with a schedule instead.")
    names = (
        "beta_1",
        "beta_2",
        "rho",
        "epsilon",
        "amsgrad",
        "momentum",
        "nesterov",
        "centered",
        "weight_decay",
        "clipvalue",
    )
    chosen: dict[str, Any] = {name: settings.get(name) for name in (*names, "initial_accumulator_value")}
    chosen |= {name: _number(value) for name, value in chosen.items()}
    if settings.get("use_ema"):  # tf_keras begins with the weights before the first step, Keras 3 with those after it
        momentum = float(settings["ema_momentum"])
        chosen |= {
            "ema_momentum": momentum,
            "first_momentum": 0.0 if hasattr(inner, "_get_variable_index") else momentum,
        }
    each, together = settings.get("clipnorm"), settings.get("global_clipnorm")
    rule = KerasOptimizer(kind, tuple(sorted(chosen.items())), settings.get("gradient_accumulation_steps") or 1)
    frequency = (settings.get("ema_overwrite_frequency") or None) if settings.get("use_ema") else None
    return LiveOptimizer(rule, outer, inner, float(each or together or 0.0), bool(each), tuple(unused), frequency)


def _number(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else float(as_array(value))


def _is_legacy(optimizer: Any) -> bool:
    return "legacy" in type(optimizer).__module__
