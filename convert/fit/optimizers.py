"""Keras' optimizers as element-wise Optax transformations, in Keras' formulas and with Keras' slots.

A table's rows are updated alone, so every optimizer but SGD without momentum and Adagrad is lazy: slots, momentum and
weight decay of rows that a step neither reads nor samples stand still.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

Slots = dict[str, jax.Array]
Settings = dict[str, Any]


class Step(NamedTuple):
    """The numbers of a step that all parameters share."""

    number: jax.Array  # float32, from 1
    rate: jax.Array  # learning rate
    u_product: jax.Array  # of Nadam


# (gradient, slots, step, settings) -> (what is added to the parameter, the next slots)
Rule = Callable[[jax.Array, Slots, Step, Settings], tuple[jax.Array, Slots]]


def _sgd(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    if not settings["momentum"]:
        return -step.rate * g, slots
    m = settings["momentum"] * slots["momentums"] - step.rate * g
    return (settings["momentum"] * m - step.rate * g if settings["nesterov"] else m), {"momentums": m}


def _moments(g: jax.Array, slots: Slots, settings: Settings) -> tuple[jax.Array, jax.Array]:
    m, v = slots["momentums"], slots["velocities"]
    return m + (g - m) * (1 - settings["beta_1"]), v + (jnp.square(g) - v) * (1 - settings["beta_2"])


def _adam(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    m, v = _moments(g, slots, settings)
    new = {"momentums": m, "velocities": v}
    if settings["amsgrad"]:
        v = jnp.maximum(slots["velocity_hats"], v)
        new["velocity_hats"] = v
    alpha = step.rate * jnp.sqrt(1 - settings["beta_2"] ** step.number) / (1 - settings["beta_1"] ** step.number)
    return -m * alpha / (jnp.sqrt(v) + settings["epsilon"]), new


def _nadam(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    m, v = _moments(g, slots, settings)
    u, next_u = (settings["beta_1"] * (1 - 0.5 * 0.96 ** (step.number + later)) for later in (0, 1))
    m_hat = next_u * m / (1 - step.u_product * next_u) + (1 - u) * g / (1 - step.u_product)
    v_hat = v / (1 - settings["beta_2"] ** step.number)
    update = -m_hat * step.rate / (jnp.sqrt(v_hat) + settings["epsilon"])
    return update, {"momentums": m, "velocities": v}


def _adamax(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    m = slots["m"] + (g - slots["m"]) * (1 - settings["beta_1"])
    u = jnp.maximum(settings["beta_2"] * slots["u"], jnp.abs(g))
    correction = 1 - settings["beta_1"] ** step.number
    return -step.rate * m / (correction * (u + settings["epsilon"])), {"m": m, "u": u}


def _rmsprop(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    rho, new = settings["rho"], dict(slots)
    new["velocities"] = rho * slots["velocities"] + (1 - rho) * jnp.square(g)
    denominator = new["velocities"] + settings["epsilon"]
    if settings["centered"]:
        new["average_gradients"] = rho * slots["average_gradients"] + (1 - rho) * g
        denominator -= jnp.square(new["average_gradients"])
    increment = step.rate * g / jnp.sqrt(denominator)
    if settings["momentum"]:
        increment = new["momentums"] = settings["momentum"] * slots["momentums"] + increment
    return -increment, new


def _adagrad(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    accumulators = slots["accumulators"] + jnp.square(g)
    return -step.rate * g / jnp.sqrt(accumulators + settings["epsilon"]), {"accumulators": accumulators}


def _adadelta(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    rho, epsilon = settings["rho"], settings["epsilon"]
    grads = rho * slots["accumulated_grads"] + (1 - rho) * jnp.square(g)
    delta = -jnp.sqrt(slots["accumulated_delta_vars"] + epsilon) * g / jnp.sqrt(grads + epsilon)
    deltas = rho * slots["accumulated_delta_vars"] + (1 - rho) * jnp.square(delta)
    return step.rate * delta, {"accumulated_grads": grads, "accumulated_delta_vars": deltas}


def _lion(g: jax.Array, slots: Slots, step: Step, settings: Settings) -> tuple[jax.Array, Slots]:
    m, beta_1, beta_2 = slots["momentums"], settings["beta_1"], settings["beta_2"]
    return -step.rate * jnp.sign(m * beta_1 + g * (1 - beta_1)), {"momentums": m * beta_2 + g * (1 - beta_2)}


class Optimizer(NamedTuple):
    """One of Keras' optimizers."""

    rule: Rule
    slots: Callable[[Settings], list[str]]  # Keras' attributes, without the underscore


_MOMENTS = ["momentums", "velocities"]
OPTIMIZERS = {
    "SGD": Optimizer(_sgd, lambda s: ["momentums"] if s["momentum"] else []),
    "Adam": Optimizer(_adam, lambda s: [*_MOMENTS, "velocity_hats"] if s["amsgrad"] else _MOMENTS),
    "AdamW": Optimizer(_adam, lambda s: [*_MOMENTS, "velocity_hats"] if s["amsgrad"] else _MOMENTS),
    "Nadam": Optimizer(_nadam, lambda s: _MOMENTS),
    "Adamax": Optimizer(_adamax, lambda s: ["m", "u"]),
    "RMSprop": Optimizer(
        _rmsprop,
        lambda s: ["velocities"] + ["momentums"] * bool(s["momentum"]) + ["average_gradients"] * bool(s["centered"]),
    ),
    "Adagrad": Optimizer(_adagrad, lambda s: ["accumulators"]),
    "Adadelta": Optimizer(_adadelta, lambda s: ["accumulated_grads", "accumulated_delta_vars"]),
    "Lion": Optimizer(_lion, lambda s: ["momentums"]),
}
AVERAGE, SETTLED, DECAYS = "model_variables_moving_average", "settled", "weight_decays"


@dataclass(frozen=True)
class KerasOptimizer:
    """Makes the Optax transformation of one of Keras' optimizers with a learning rate.

    The state of a part is {"step", "u_product", slot: tree, ...}. With `weight_decay`, `DECAYS` is the decay
    of each parameter, 0 for those that are excluded. With `ema_momentum`, it has moving averages. They are lazy and
    exact: while a row stays at w for n steps, its average a moves to w + ema_momentum**n * (a - w). So each row also
    has the step of its average, `SETTLED`, and `settle` brings all averages up to the current step.

    Attributes:
      kind: name of Keras' class.
      items: its settings, sorted.
      batches: number of batches per update; steps count batches.
    """

    kind: str
    items: tuple[tuple[str, Any], ...]
    batches: int = 1

    @property
    def settings(self) -> Settings:
        """The settings, by Keras' names."""
        return dict(self.items)

    @property
    def slots(self) -> list[str]:
        """The slots, by Keras' attributes without the underscore."""
        return OPTIMIZERS[self.kind].slots(self.settings) + [AVERAGE] * self.has_averages

    @property
    def weight_decay(self) -> float:
        """The weight decay of the parameters that have one."""
        return self.settings.get("weight_decay") or 0.0

    @property
    def has_averages(self) -> bool:
        """Whether it keeps moving averages of the parameters."""
        return self.settings.get("ema_momentum") is not None

    def __call__(self, learning_rate: Any) -> optax.GradientTransformation:
        """Returns the transformation; `learning_rate` may be traced."""
        rule, settings = OPTIMIZERS[self.kind].rule, self.settings
        slots = self.slots + [SETTLED] * self.has_averages
        start = settings.get("initial_accumulator_value") or 0.0

        def init(params: Any) -> dict[str, Any]:
            filled = {slot: jax.tree.map(lambda leaf: jnp.full_like(leaf, start), params) for slot in slots}
            if self.has_averages:
                filled[AVERAGE] = jax.tree.map(jnp.copy, params)
                filled[SETTLED] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[:1], jnp.int32), params)
            if self.weight_decay:
                filled[DECAYS] = jax.tree.map(lambda leaf: jnp.float32(self.weight_decay), params)
            return {"step": jnp.int32(0), "u_product": jnp.float32(1.0), **filled}

        def update(gradients: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
            number = (state["step"] // self.batches + 1).astype(jnp.float32)
            u_product = state["u_product"] * (settings.get("beta_1") or 1.0) * (1 - 0.5 * 0.96**number)
            step = Step(number, jnp.asarray(learning_rate, jnp.float32), u_product)
            limit, kept = settings.get("clipvalue"), {DECAYS: state[DECAYS]} if self.weight_decay else {}
            leaves, tree = jax.tree.flatten(gradients)
            structure: Any = tree
            old = [structure.flatten_up_to(state[slot]) for slot in slots]
            decays = structure.flatten_up_to(state[DECAYS]) if kept else [0.0] * len(leaves)
            updates, new = [], []
            for leaf, decay, param, *of_leaf in zip(leaves, decays, structure.flatten_up_to(params), *old, strict=True):
                leaf = jnp.clip(leaf, -limit, limit) if limit else leaf
                old_slots = dict(zip(slots, of_leaf, strict=True))
                delta, new_slots = rule(leaf, old_slots, step, settings)
                delta = delta - step.rate * decay * param if kept else delta
                if self.has_averages:
                    new_slots = new_slots | self._average(param, delta, old_slots, state["step"])
                updates.append(delta)
                new.append([new_slots[slot] for slot in slots])
            columns = zip(*new, strict=True) if new else [()] * len(slots)
            trees = {slot: structure.unflatten(column) for slot, column in zip(slots, columns, strict=True)}
            trees |= {"step": state["step"] + self.batches, "u_product": u_product}
            return structure.unflatten(updates), trees | kept

        return optax.GradientTransformation(init, update)

    def _average(self, param: jax.Array, delta: jax.Array, slots: Slots, steps: jax.Array) -> Slots:
        """Returns the averages after the last step of an update that adds `delta`; the first update begins them."""
        momentum = jnp.where(steps > 0, self.settings["ema_momentum"], self.settings["first_momentum"])
        before = self.settle(param, slots[AVERAGE], slots[SETTLED], steps + self.batches - 1)
        average = momentum * before + (1 - momentum) * (param + delta)
        return {AVERAGE: average, SETTLED: jnp.full_like(slots[SETTLED], steps + self.batches)}

    def settle(self, param: jax.Array, average: jax.Array, settled: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns the averages `[R, ...]` at `steps`, of rows unchanged since step `settled`; the rows if it is 0."""
        left = jnp.where(settled > 0, self.settings["ema_momentum"] ** (steps - settled).astype(jnp.float32), 0.0)
        return param + left.reshape(left.shape + (1,) * (param.ndim - left.ndim)) * (average - param)


@partial(jax.jit, static_argnums=0)
def settle(rule: KerasOptimizer, params: Any, state: dict[str, Any], waiting: ArrayLike) -> dict[str, Any]:
    """Returns the state of a part with all its moving averages as they are after its last step.

    Args:
      rule: of the state.
      params: of the part.
      state: of the part.
      waiting: steps since the last update.
    """
    steps = state["step"] + waiting
    averages = jax.tree.map(partial(rule.settle, steps=steps), params, state[AVERAGE], state[SETTLED])
    return state | {AVERAGE: averages, SETTLED: jax.tree.map(lambda each: jnp.full_like(each, steps), state[SETTLED])}
