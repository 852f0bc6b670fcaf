"""The optimizer's state between jaxlm and Keras: moments lie as the weights do, so the weight table serves them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from convert.weights import from_keras, reorder_rows, to_keras, weight_table
from jaxlm.config import ModelConfig, Optimizer, TrainConfig
from jaxlm.errors import InputError

SLOTS: dict[Optimizer, tuple[str, ...]] = {  # Optax's names, in Keras' order
    "adam": ("mu", "nu"),
    "adagrad": ("sum_of_squares",),
}
FIXED = {"beta_1": 0.9, "beta_2": 0.999, "amsgrad": False, "weight_decay": None}  # in jaxlm, as Keras' defaults


class OptimizerState(NamedTuple):
    """What an optimizer remembers."""

    name: Optimizer
    steps: int  # done so far
    learning_rate: float
    clip_norm: float  # of all gradients together; 0 does not clip
    slots: dict[str, dict[str, np.ndarray]]  # by Optax's names: one array a weight, by its jaxlm name


def from_train_state(
    opt_state: Mapping[str, Any], config: TrainConfig, learning_rate: float, steps: int
) -> OptimizerState:
    """Reads the state of `jaxlm.TrainState.opt_state`, for adam or adagrad, after so many steps."""
    slots = {}
    for slot in SLOTS[config.optimizer]:
        names, leaves, _ = _slot(opt_state, slot)
        slots[slot] = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
    return OptimizerState(config.optimizer, steps, learning_rate, config.clip_norm, slots)


def to_train_state(state: OptimizerState, opt_state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `from_train_state`: `opt_state`, of the same optimizer, with the arrays of `state`."""
    filled = dict(opt_state)
    for slot, arrays in state.slots.items():
        names, _, structure = _slot(opt_state, slot)
        trees = jax.tree.unflatten(structure, [jnp.array(arrays[name]) for name in names])
        filled = {table: _replace(filled[table], slot, tree) for table, tree in trees.items()}
    if state.name == "adam":
        filled = {table: _replace(filled[table], "count", jnp.int32(state.steps)) for table in filled}
    return filled


def _replace(state: tuple, field: str, value: Any) -> tuple:
    """Replaces a field of the first state of an Optax chain."""
    return (state[0]._replace(**{field: value}), *state[1:])


def _slot(opt_state: Mapping[str, Any], slot: str) -> tuple[list[str], list[jax.Array], Any]:
    """The jaxlm names and the leaves of a slot, and their structure."""
    trees = {table: getattr(state[0], slot) for table, state in opt_state.items()}
    leaves, structure = jax.tree_util.tree_flatten_with_path(trees)
    names = [jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("dense/") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves], structure


def reorder(state: OptimizerState, index: np.ndarray) -> OptimizerState:
    """The state of the model that `weights.reorder_classes` returns."""
    return state._replace(slots={slot: reorder_rows(arrays, index) for slot, arrays in state.slots.items()})


def same(first: OptimizerState, second: OptimizerState) -> bool:
    """Whether two states are the same, bit for bit."""
    arrays = [jax.tree.leaves(state.slots) for state in (first, second)]
    return first[:-1] == second[:-1] and all(map(np.array_equal, *arrays))


def compile_model(model: keras.Model, state: OptimizerState, config: ModelConfig) -> None:
    """Compiles a Keras model of `keras_model.build` with the optimizer, where it stands.

    Args:
      model: to compile, with sparse categorical cross-entropy.
      state: of jaxlm's optimizer.
      config: of the model; not tied, since its rows are two tables in Keras, and have two optimizers' states.

    Raises:
      InputError: a moment is not finite.
    """
    clip = state.clip_norm or None
    if state.name == "adam":
        optimizer = keras.optimizers.Adam(state.learning_rate, epsilon=1e-8, global_clipnorm=clip)
    else:
        optimizer = keras.optimizers.Adagrad(state.learning_rate, epsilon=1e-7, global_clipnorm=clip)
    from_logits = model.layers[-1].get_config().get("activation") == "linear"
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(state.steps)
    arrays = [list(to_keras(state.slots[slot], config).values()) for slot in SLOTS[state.name]]
    interleaved = [array for arrays_of_weight in zip(*arrays, strict=True) for array in arrays_of_weight]
    for variable, array in zip(optimizer.variables[2:], interleaved, strict=True):  # after iterations, learning_rate
        variable.assign(array)


def from_keras_list(optimizer: Mapping[str, Any], arrays: Sequence[np.ndarray], config: ModelConfig) -> OptimizerState:
    """Makes the state of what a Keras file holds.

    Args:
      optimizer: its config, {"class_name": ..., "config": ...}.
      arrays: its variables as Keras lists them: iterations, learning rate, and the slots of each weight.
      config: of the model.

    Raises:
      InputError: jaxlm has no such optimizer, or the arrays do not fit the model; says which.
    """
    kind, settings = str(optimizer.get("class_name")), dict(optimizer.get("config") or {})
    known: dict[str, Optimizer] = {"Adam": "adam", "Adagrad": "adagrad"}
    other = [key for key, value in FIXED.items() if (settings.get(key) or value) != value]
    if kind not in known or other or config.tied:
        reason = "tied rows" if config.tied else ", ".join(f"{key}={settings[key]}" for key in other)
        raise InputError(
            f"The state of the optimizer {kind}{f' with {reason}' if reason else ''} cannot be kept: expected Adam or"
            " Adagrad as jaxlm has them; leave --keep-optimizer out to begin with a fresh one."
        )
    name = known[kind]
    names = [weight.keras for weight in weight_table(config)]
    slots = SLOTS[name]
    if len(arrays) != 2 + len(slots) * len(names):
        raise InputError(f"The optimizer has {len(arrays)} variables; expected {2 + len(slots) * len(names)}.")
    by_slot = {
        slot: from_keras(dict(zip(names, arrays[2 + i :: len(slots)], strict=True)), config)
        for i, slot in enumerate(slots)
    }
    clip_norm = float(settings.get("global_clipnorm") or 0.0)
    learning_rate = float(str(np.float32(arrays[1])))  # 0.03, where float() gives 0.029999999329447746
    return OptimizerState(name, int(arrays[0]), learning_rate, clip_norm, by_slot)
