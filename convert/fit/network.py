"""`Network`: a live Keras model for training: its body, its tables, and the path of each variable in the state."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import keras
import numpy as np

from convert.fit.inputs import Prepare, Prepared, input_names, integer_ids, mask_of_outputs, preparation
from convert.fit.keras_body import KerasBody
from convert.fit.split_model import Cut, cut_model
from convert.keras_models.live_layers import (
    definer,
    read_live_model,
    require_plain_weights,
    states_of,
    weight_variables,
)
from convert.keras_models.supported_layers import Structure
from convert.weights.table import TABLES, weight_table
from jaxlm.config import ComputeDtype, TrainConfig
from jaxlm.data.batches import place_streams
from jaxlm.errors import InputError, require
from jaxlm.parallel.mesh import Mesh
from jaxlm.token_ids import check_ids
from jaxlm.training.body import Body, LanguageModelBody

METHODS = ("call", "train_step", "compute_loss", "make_train_function")  # which training does not call

Path = tuple[Any, ...]  # of an array in a `TrainState`, such as ("dense", "lstms", 0, "kernel")


class Link(NamedTuple):
    """A variable of Keras, and the array in a `TrainState` that holds its value."""

    variable: Any
    path: Path
    trained: bool
    transposed: bool = False  # in Keras


class Network(NamedTuple):
    """A live Keras model as jaxlm trains it."""

    body: Callable[[ComputeDtype], Body]  # given the data type of products
    links: tuple[Link, ...]
    lookups: tuple[str, ...]
    vocab_size: int
    logits: bool  # no softmax at the end
    unused: tuple[str, ...]  # settings without effect, in words
    prepare: Prepare
    mask: Callable[..., np.ndarray | None]  # ids, features -> which outputs count, [batch_size, P]
    num_outputs: Callable[[Sequence[np.ndarray]], int | None]  # inputs -> P; None if the body decides
    input_names: tuple[str, ...]
    last_only: bool  # one output for an example
    structure: Structure | None = None  # of a chain of layers that jaxlm has itself
    batch_size: int | None = None  # that the states of a stateful model have

    def zero_carry(self, batch_size: int, mesh: Mesh | None = None) -> Any:
        """Returns the initial carry of a chain of LSTMs; a Keras body has its states among its other variables."""
        sizes = [] if self.structure is None else [lstm.size for lstm in self.structure.config.lstms]
        return tuple(tuple(place_streams(jnp.zeros((batch_size, size)), mesh) for _ in "ch") for size in sizes)

    @property
    def is_chain(self) -> bool:
        """Whether the model is a chain of layers that jaxlm has itself; if not, Keras computes the body."""
        return self.structure is not None

    @property
    def trained(self) -> tuple[Link, ...]:
        """The links of trained weights."""
        return tuple(link for link in self.links if link.path[0] in ("tables", "dense") and link.trained)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The tables that are not trained."""
        return tuple(link.path[1] for link in self.links if link.path[0] == "tables" and not link.trained)


def open_network(model: Any, shape: tuple[int | None, ...]) -> Network:
    """Opens a live model: the chain that jaxlm has itself, or any body under Keras' JAX backend.

    Args:
      model: of Keras 3 or `tf_keras`; it is built if it is not.
      shape: of a batch of its inputs, to build it with.

    Raises:
      InputError: it cannot be trained with sampled softmax; names the layer and the reason.
    """
    if not getattr(model, "built", False) and type(model).__name__ == "Sequential":
        _build(model, shape)
    changed = methods_of_user(model, METHODS) if getattr(model, "inputs", None) else []
    if changed:
        kind, advice = type(model).__name__, "which fit_keras does not call. Train it with model.fit."
        raise InputError(f"Invalid `model`: {kind} has a `{changed[0]}` of its own, {advice}")
    any_body = isinstance(model, keras.Model) and keras.backend.backend() == "jax"
    try:
        layers, structure = read_live_model(model)
        _check_layers(layers)
    except InputError as error:
        if any_body:
            return _any_body(model)
        if isinstance(model, keras.Model):
            _cut(model)  # raises if the JAX backend refuses it, too
            raise InputError(
                f"{error} To train any other body, set the environment variable KERAS_BACKEND=jax before Keras is"
                " imported."
            ) from error
        raise
    ignored = [setting for setting in structure.ignored if not setting.endswith("trainable=False")]
    return _any_body(model) if any_body and ignored else _chain(model, layers, structure, tuple(ignored))


def _build(model: Any, shape: tuple[int | None, ...]) -> None:
    try:
        model.build(shape)
    except (ValueError, TypeError) as error:
        text = re.sub(r"\x1b\[\d*m", "", str(error)).partition("Arguments received by")[0]  # of many lines, in bold
        problem = f"The Keras model cannot be built for inputs of shape {shape}: {' '.join(text.split())}"
        raise InputError(f"{problem.removesuffix('.')}. Add keras.Input(shape) as its first layer.") from error


def methods_of_user(model: Any, methods: Sequence[str]) -> list[str]:
    """Returns the methods of a functional or Sequential model that a user's class defines, of those named."""
    return [name for name in methods if hasattr(model, name) and not definer(model, name)]


def _check_layers(layers: Sequence[Any]) -> None:
    states = {
        layer.name: bool(getattr(layer, "stateful", False)) for layer in layers if hasattr(layer, "return_sequences")
    }
    if len(set(states.values())) > 1:
        raise InputError(f"Invalid `model`: expected all LSTM layers to be stateful, or none. Received: {states}.")
    for layer in layers:
        require_plain_weights(layer, "fit_keras trains LSTM models of plain weights")


def _chain(model: Any, layers: Sequence[Any], structure: Structure, unused: tuple[str, ...]) -> Network:
    """Opens Embedding -> LSTM -> Dense, which is trained with jaxlm's LSTM."""
    config, trainable = structure.config, _ids_of(model.trainable_variables)
    links = []
    variables = [variable for layer in layers for variable in weight_variables(layer)]
    for weight, variable in zip(weight_table(config), variables, strict=True):
        trained = id(variable) in trainable
        part = "tables" if weight.jaxlm in TABLES else "dense" if trained else "other"
        names = tuple(int(name) if name.isdigit() else name for name in weight.jaxlm.split("/"))
        links.append(Link(variable, (part, *names), trained, weight.transposed))
    stateful = [layer for layer in layers if getattr(layer, "stateful", False)]
    for number, layer in enumerate(stateful):
        h, c = states_of(layer)
        links += [Link(c, ("carry", number, 0), False), Link(h, ("carry", number, 1), False)]

    def prepare(inputs: Sequence[np.ndarray], name: str) -> Prepared:
        ids = integer_ids(inputs[0], name)
        require(ids.ndim == 2 and ids.size > 0, name, "ids of shape [N, T]; a dataset needs `.batch()`", ids.shape)
        check_ids(name, ids.ravel(), config.vocab_size)
        return (ids,), ()

    def mask(ids: Sequence[np.ndarray], features: Any) -> np.ndarray | None:
        return ids[0] != 0 if structure.mask_zero and not structure.last_only else None

    return Network(
        body=lambda dtype: LanguageModelBody(config, None, TrainConfig(compute_dtype=dtype)),
        links=tuple(links),
        lookups=("embedding",),
        vocab_size=config.vocab_size,
        logits=structure.logits,
        unused=unused,
        prepare=prepare,
        mask=mask,
        num_outputs=lambda inputs: 1 if structure.last_only else inputs[0].shape[1],
        input_names=input_names(model),
        last_only=structure.last_only,
        structure=structure,
        batch_size=states_of(stateful[0])[0].shape[0] if stateful else None,
    )


def _cut(model: Any) -> Cut:
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError("The Keras model is not built yet, or subclassed; make it functional or Sequential.")
    return cut_model(model)


def _any_body(model: Any) -> Network:
    cut, trainable = _cut(model), _ids_of(model.trainable_variables)
    trained = [Link(variable, ("dense", i), True) for i, variable in enumerate(cut.body.trainable_variables)]
    other = [Link(variable, ("other", i), False) for i, variable in enumerate(cut.body.non_trainable_variables)]
    head = cut.head
    names = {id(head.weights): "weights", id(head.bias): "biases"}  # an Embedding with these rows is tied to the head
    rows = {id(lookup.layer.embeddings): lookup.layer.embeddings for lookup in cut.lookups}
    names |= {each: f"embedding_{i}" for i, each in enumerate(rows) if each not in names}
    variables = rows | {id(each): each for each in (head.weights, head.bias) if each is not None}
    tables = [
        Link(each, ("tables", names[key]), key in trainable, head.transposed and each is head.weights)
        for key, each in variables.items()
    ]
    masked = tuple(i for i, lookup in enumerate(cut.lookups) if lookup.layer.mask_zero)
    widths = [lookup.outputs.shape[-1] for lookup in cut.lookups]
    body = KerasBody(cut.body, len(cut.lookups), masked, tuple(variable.trainable for variable in cut.body.variables))
    is_stateful = any(getattr(layer, "stateful", False) for layer in cut.body._flatten_layers())
    batch_size = model.inputs[0].shape[0] if is_stateful else None
    shape = cut.body.outputs[0].shape
    num_outputs = 1 if len(shape) == 2 else shape[1] if len(shape) == 3 else None
    return Network(
        body=lambda dtype: body,
        links=(*trained, *other, *tables),
        lookups=tuple(names[id(lookup.layer.embeddings)] for lookup in cut.lookups),
        vocab_size=head.weights.shape[head.transposed],
        logits=cut.logits,
        unused=_unused(model, cut),
        prepare=preparation(model, cut, masked),
        mask=partial(mask_of_outputs, body if head.keeps_mask else None, widths, batch_size),
        num_outputs=lambda inputs: num_outputs,
        input_names=input_names(model),
        last_only=len(shape) == 2,
        batch_size=batch_size,
    )


def _unused(model: Any, cut: Cut) -> tuple[str, ...]:
    """Returns the settings of the head, and of layers after it, that have no effect."""
    inside = _ids_of(cut.body._flatten_layers())
    outside = [layer for layer in model._flatten_layers(include_self=False) if id(layer) not in inside]
    settings = [(layer.name, "activity_regularizer", layer.activity_regularizer) for layer in outside]
    for variable in (cut.head.weights, cut.head.bias):
        if variable is not None:
            settings += [(variable.path, name, getattr(variable, name)) for name in ("regularizer", "constraint")]
    return tuple(f"{name}: {kind}={type(value).__name__}" for name, kind, value in settings if value is not None)


def _ids_of(variables: Sequence[Any]) -> set[int]:
    return {id(variable) for variable in variables}
