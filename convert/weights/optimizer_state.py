"""The optimizer state, jaxlm <-> Keras. Moments have the layout of the weights, so both use the same table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert.weights.table import from_keras_weights, weight_table
from jaxlm.config import ModelConfig, Optimizer, TrainConfig
from jaxlm.errors import InputError
from jaxlm.parallel.mesh import leaf_name

SLOTS: dict[Optimizer, tuple[str, ...]] = {  # Optax's names, in Keras' order
    "adam": ("mu", "nu"),
    "adagrad": ("sum_of_squares",),
    "sgd": (),
}
KERAS_OPTIMIZERS: dict[str, Optimizer] = {"Adam": "adam", "Adagrad": "adagrad", "SGD": "sgd"}
FIXED = {  # in jaxlm; Keras' defaults
    "beta_1": 0.9,
    "amsgrad": False,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": None,
    "use_ema": False,
    "gradient_accumulation_steps": None,
}
ADVICE = "Leave out `keep_optimizer` to start with a fresh optimizer."
EPSILON: dict[Optimizer, float] = {"adam": 1e-8, "adagrad": 1e-7}  # Optax's defaults
USUAL: dict[str, Any] = {  # Keras' defaults, which are not reported
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
    "ema_momentum": 0.99,
    "initial_accumulator_value": 0.1,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}


class OptimizerState(NamedTuple):
    """State of an optimizer between steps."""

    name: Optimizer
    steps: int  # done so far
    learning_rate: float
    clip_norm: float  # of all gradients together; 0 for no clipping
    beta_2: float  # of adam; the others have jaxlm's default, which they do not use
    slots: dict[str, dict[str, np.ndarray]]  # by Optax's names: an array for each weight, by its jaxlm name


def unusual_settings(settings: Mapping[str, Any], run_optimizer: Optimizer | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the settings of a Keras optimizer, from its config, that are not Keras' defaults.

    If a run continues with it as `run_optimizer`, epsilon is compared with that of the run instead.
    """
    usual = USUAL if run_optimizer is None else USUAL | {"epsilon": EPSILON.get(run_optimizer)}
    for name, value in settings.items():
        value = value.get("class_name", "?") if isinstance(value, dict) else value
        if name not in ("name", "jit_compile") and value not in (None, False) and value != usual.get(name):
            yield name, value


def from_train_state(
    opt_state: Mapping[str, Any], config: TrainConfig, learning_rate: float, steps: int
) -> OptimizerState:
    """Reads `jaxlm.TrainState.opt_state`, after `steps` steps of the run; Adam also counts those before an import."""
    slots = {}
    for slot in SLOTS[config.optimizer]:
        names, leaves, _ = _slot(opt_state, slot)
        slots[slot] = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
    beta_2 = config.beta_2 if config.optimizer == "adam" else TrainConfig.beta_2
    steps = int(opt_state["dense"][0].count) if config.optimizer == "adam" else steps
    return OptimizerState(config.optimizer, steps, _in_float32(learning_rate), config.clip_norm, beta_2, slots)


def _in_float32(value: Any) -> float:
    """Returns a number as Keras stores it, with the fewest digits: 0.03, where float() gives 0.029999999329447746."""
    return float(str(np.float32(value)))


def to_train_state(state: OptimizerState, opt_state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `from_train_state`: an `opt_state` of the same optimizer, with the arrays of `state`."""
    filled = dict(opt_state)
    for slot, arrays in state.slots.items():
        names, _, structure = _slot(opt_state, slot)
        trees = jax.tree.unflatten(structure, [jnp.array(arrays[name]) for name in names])
        filled = {table: _replace(filled[table], slot, tree) for table, tree in trees.items()}
    if state.name == "adam":
        filled = {table: _replace(filled[table], "count", jnp.int32(state.steps)) for table in filled}
    return filled


def _replace(state: tuple, field: str, value: Any) -> tuple:
    """Replaces a field of the first state in an Optax chain."""
    return (state[0]._replace(**{field: value}), *state[1:])


def _slot(opt_state: Mapping[str, Any], slot: str) -> tuple[list[str], list[jax.Array], Any]:
    """Returns the jaxlm names and the leaves of a slot, and the structure of its tree."""
    trees = {table: getattr(state[0], slot) for table, state in opt_state.items()}
    leaves, structure = jax.tree_util.tree_flatten_with_path(trees)
    names = [leaf_name(path).removeprefix("dense/") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves], structure


def states_equal(first: OptimizerState, second: OptimizerState) -> bool:
    """Whether two states are equal, bit for bit."""
    arrays = [jax.tree.leaves(state.slots) for state in (first, second)]
    return first[:-1] == second[:-1] and all(map(np.array_equal, *arrays))


def state_from_keras_arrays(
    optimizer: Mapping[str, Any], arrays: Sequence[np.ndarray], config: ModelConfig
) -> OptimizerState:
    """Makes a state from the contents of a Keras file.

    Args:
      optimizer: its config, {"class_name": ..., "config": ...}.
      arrays: its variables in Keras' order: iterations, learning rate, and the slots of each weight.
      config: of the model.

    Raises:
      InputError: jaxlm has no such optimizer, or the arrays do not fit the model.
    """
    kind, settings = str(optimizer.get("class_name")), optimizer.get("config")
    settings = settings if isinstance(settings, dict) else {}
    given = {key: value for key, value in settings.items() if key in FIXED and value is not None}
    unsupported = [f"{key}={value}" for key, value in given.items() if (value or None) != (FIXED[key] or None)]
    if isinstance(settings.get("learning_rate"), dict):
        unsupported.append(f"learning_rate={settings['learning_rate'].get('class_name')}")
    unsupported += ["tied rows"] if config.tied else []
    if kind not in KERAS_OPTIMIZERS or unsupported:
        description = f"{kind} with {', '.join(unsupported)}" if unsupported else kind
        raise InputError(
            "Invalid `keep_optimizer`: expected Adam with a beta_1 of 0.9, Adagrad or SGD, a constant learning rate, no"
            " momentum, amsgrad, weight decay, moving averages or gradient accumulation, and a model without tied rows."
            f" Received: {description}. {ADVICE}"
        )
    name = KERAS_OPTIMIZERS[kind]
    names, slots = [weight.keras for weight in weight_table(config)], SLOTS[name]
    expected = 2 + len(slots) * len(names)
    if len(arrays) != expected:
        raise InputError(
            f"Invalid `keep_optimizer`: expected {expected} variables of the optimizer. Received: {len(arrays)}."
            f" A frozen layer has none. {ADVICE}"
        )
    by_slot = {
        slot: from_keras_weights(dict(zip(names, arrays[2 + i :: len(slots)], strict=True)), config)
        for i, slot in enumerate(slots)
    }
    clip_norm = float(settings.get("global_clipnorm") or 0.0)
    beta_2 = float(settings.get("beta_2", TrainConfig.beta_2))
    return OptimizerState(name, int(arrays[0]), _in_float32(arrays[1]), clip_norm, beta_2, by_slot)
