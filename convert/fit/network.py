"""`Network`: a live Keras model as jaxlm trains it. Its body, its tables, and where each variable lies in the state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from convert.fit.examples import integer_ids
from convert.fit.split_model import Cut, cut_model
from convert.keras_models.live_layers import read_live_model, states_of, weight_variables
from convert.keras_models.supported_layers import Structure
from convert.weights.table import weight_table
from jaxlm.errors import InputError
from jaxlm.training.body import Body, BodyOutputs, LanguageModelBody

Path = tuple[Any, ...]  # of an array in a `TrainState`, such as ("dense", "lstms", 0, "kernel")
FLOAT16_SCALE = 1024.0  # of gradients inside a float16 body, which would underflow


class Link(NamedTuple):
    """A variable of Keras, and the array in a `TrainState` that holds its value."""

    variable: Any
    path: Path
    trained: bool
    transposed: bool = False  # in Keras


class Network(NamedTuple):
    """A live Keras model as jaxlm trains it."""

    body: Callable[[str], Body]  # given the data type of products
    links: tuple[Link, ...]
    lookups: tuple[str, ...]
    vocab_size: int
    logits: bool  # no softmax at the end
    unused: tuple[str, ...]  # settings without effect, in words
    prepare: Callable[[Sequence[np.ndarray]], tuple[tuple[np.ndarray, ...], Any]]  # inputs -> ids, features
    mask: Callable[[Sequence[np.ndarray]], np.ndarray | None]  # inputs -> which outputs count, [batch_size, P]
    num_inputs: int
    last_only: bool  # one output for an example
    structure: Structure | None = None  # of a chain of layers that jaxlm has itself
    batch_size: int | None = None  # that the states of a stateful model have

    @property
    def frozen(self) -> tuple[str, ...]:
        """The tables that are not trained."""
        return tuple(link.path[1] for link in self.links if link.path[0] == "tables" and not link.trained)


def open_network(model: Any, sequence_length: int | None) -> Network:
    """Opens a live model: the chain that jaxlm has itself, or any body under Keras' JAX backend.

    Args:
      model: of Keras 3 or `tf_keras`; it is built if it is not.
      sequence_length: of its inputs, to build it with.

    Raises:
      InputError: it cannot be trained with sampled softmax; names the layer and the reason.
    """
    if not getattr(model, "built", False) and type(model).__name__ == "Sequential":
        model.build((None, sequence_length))
    any_body = isinstance(model, keras.Model) and keras.backend.backend() == "jax"
    try:
        layers, structure = read_live_model(model)
        _check_layers(layers)
    except InputError as error:
        if any_body:
            return _any_body(model)
        if isinstance(model, keras.Model):
            raise InputError(
                f"{error} To train any other body, set the environment variable KERAS_BACKEND=jax before Keras is"
                " imported."
            ) from error
        raise
    ignored = [setting for setting in structure.ignored if not setting.endswith("trainable=False")]
    return _any_body(model) if any_body and ignored else _chain(model, layers, structure, tuple(ignored))


def _check_layers(layers: Sequence[Any]) -> None:
    states = {
        layer.name: bool(getattr(layer, "stateful", False)) for layer in layers if hasattr(layer, "return_sequences")
    }
    if len(set(states.values())) > 1:
        raise InputError(f"jaxlm's LSTM layers are all stateful, or none is. Received: {states}.")
    for layer in layers:
        inner = getattr(layer, "layer", layer)
        if getattr(inner, "lora_enabled", False):
            raise InputError(f"Layer {layer.name!r} has LoRA, which jaxlm's own LSTM models do not have.")
        if getattr(inner, "quantization_mode", None):
            raise InputError(f"Layer {layer.name!r} is quantized to {inner.quantization_mode}, and cannot be trained.")


def _chain(model: Any, layers: Sequence[Any], structure: Structure, unused: tuple[str, ...]) -> Network:
    """Opens Embedding -> LSTM -> Dense, for which jaxlm has its own LSTM."""
    config, trainable = structure.config, _ids_of(model.trainable_variables)
    links = []
    variables = [variable for layer in layers for variable in weight_variables(layer)]
    for weight, variable in zip(weight_table(config), variables, strict=True):
        trained = id(variable) in trainable
        is_table = weight.jaxlm in ("embedding", "weights", "biases")
        part = "tables" if is_table else "dense" if trained else "other"
        names = tuple(int(name) if name.isdigit() else name for name in weight.jaxlm.split("/"))
        links.append(Link(variable, (part, *names), trained, weight.transposed))
    stateful = [layer for layer in layers if getattr(layer, "stateful", False)]
    for number, layer in enumerate(stateful):
        h, c = states_of(layer)
        links += [Link(c, ("carry", number, 0), False), Link(h, ("carry", number, 1), False)]

    def mask(inputs: Sequence[np.ndarray]) -> np.ndarray | None:
        return inputs[0] != 0 if structure.mask_zero and not structure.last_only else None

    return Network(
        partial(LanguageModelBody, config, None),
        tuple(links),
        ("embedding",),
        config.vocab_size,
        structure.logits,
        unused,
        lambda inputs: (tuple(inputs), ()),
        mask,
        1,
        structure.last_only,
        structure,
        states_of(stateful[0])[0].shape[0] if stateful else None,
    )


def _any_body(model: Any) -> Network:
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError("The Keras model is not built yet, or subclassed; make it functional or Sequential.")
    cut, trainable = cut_model(model), _ids_of(model.trainable_variables)
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
    settings = ((name, getattr(head.layer, name, None)) for name in HEAD_SETTINGS)
    unused = tuple(f"{head.layer.name}: {name}={type(value).__name__}" for name, value in settings if value is not None)
    masked = tuple(i for i, lookup in enumerate(cut.lookups) if lookup.layer.mask_zero)
    body = KerasBody(cut.body, len(cut.lookups), masked, tuple(variable.trainable for variable in cut.body.variables))
    prepare = _prepare(model, cut, masked)
    stateful = [layer for layer in cut.body._flatten_layers() if getattr(layer, "stateful", False)]
    return Network(
        lambda dtype: body,
        (*trained, *other, *tables),
        tuple(names[id(lookup.layer.embeddings)] for lookup in cut.lookups),
        head.weights.shape[head.transposed],
        cut.logits,
        unused,
        prepare,
        partial(
            _mask, body if head.keeps_mask else None, prepare, [lookup.outputs.shape[-1] for lookup in cut.lookups]
        ),
        len(model.inputs),
        len(cut.body.outputs[0].shape) == 2,
        None,
        model.inputs[0].shape[0] if stateful else None,
    )


HEAD_SETTINGS = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def _ids_of(variables: Sequence[Any]) -> set[int]:
    return {id(variable) for variable in variables}


@dataclass(frozen=True)
class KerasBody:
    """The body of a Keras model, called by `stateless_call`.

    `dense` and `other` are its trainable and its other variables, `features` its other inputs and then the masks.

    Attributes:
      model: from the rows of the lookups, and other inputs, to the inputs of the head.
      num_lookups: how many of its inputs are rows.
      masked: the lookups with a mask.
      trained: which variables are trained, so that a body with other frozen layers compiles anew.
    """

    model: Any
    num_lookups: int
    masked: tuple[int, ...]
    trained: tuple[bool, ...]

    def __call__(
        self, dense: Any, other: Any, rows: tuple[jax.Array, ...], features: Any, carry: Any, key: jax.Array | None
    ) -> BodyOutputs:
        """Returns the inputs of the head in float32, as a `Body`."""
        outputs, other, losses = self.call(dense, other, rows, features, key is not None)
        return BodyOutputs(outputs.astype(jnp.float32), carry, other, sum(losses, start=jnp.float32(0.0)))

    def call(
        self, dense: Any, other: Any, rows: Sequence[jax.Array], features: Sequence[Any], training: bool
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """Returns the outputs of Keras, its other variables afterwards, and its losses."""
        count = len(features) - len(self.masked)
        masks: list[Any] = [None] * (self.num_lookups + count)
        for index, mask in zip(self.masked, features[count:], strict=True):
            masks[index] = mask
        inputs = [*rows, *features[:count]]
        float16 = training and any(tensor.dtype == "float16" for tensor in self.model.inputs)
        if float16:
            dense, inputs = _scale_gradient((dense, inputs), 1.0 / FLOAT16_SCALE)
        settings = {"training": training, "mask": masks} if self.masked else {"training": training}
        outputs, other, losses = self.model.stateless_call(dense, other, inputs, return_losses=True, **settings)
        if float16:
            outputs = _scale_gradient(outputs, FLOAT16_SCALE)
        return outputs, other, losses


def _scale_gradient(tree: Any, scale: float) -> Any:
    """Returns the same arrays, whose gradients are multiplied by a number."""

    @jax.custom_vjp
    def scaled(leaf: jax.Array) -> jax.Array:
        return leaf

    scaled.defvjp(lambda leaf: (leaf, None), lambda _, gradient: (gradient * scale,))
    return jax.tree.map(lambda leaf: scaled(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _prepare(
    model: Any, cut: Cut, masked: tuple[int, ...]
) -> Callable[[Sequence[np.ndarray]], tuple[tuple[np.ndarray, ...], Any]]:
    """Returns the function from a model's inputs to the ids of its lookups and to the body's features."""
    places = {id(tensor): i for i, tensor in enumerate(model.inputs)}
    computed = [lookup.ids for lookup in cut.lookups if id(lookup.ids) not in places]
    computing = keras.Model(model.inputs, computed) if computed else None

    def prepare(inputs: Sequence[np.ndarray]) -> tuple[tuple[np.ndarray, ...], Any]:
        results = iter([] if computing is None else keras.tree.flatten(computing(list(inputs))))
        ids = []
        for lookup in cut.lookups:
            place = places.get(id(lookup.ids))
            found = inputs[place] if place is not None else np.asarray(keras.ops.convert_to_numpy(next(results)))
            ids.append(integer_ids(found, model.inputs[place].name if place is not None else lookup.layer.name))
        features = [np.asarray(inputs[places[id(tensor)]]).astype(tensor.dtype) for tensor in cut.features]
        return tuple(ids), (*features, *(ids[i] != 0 for i in masked))

    return prepare


def _mask(
    body: KerasBody | None, prepare: Callable[..., Any], widths: Sequence[int], inputs: Sequence[np.ndarray]
) -> np.ndarray | None:
    """Returns the mask of the outputs, as Keras carries it from the embeddings to the head; None without a body."""
    if body is None or not body.masked:
        return None
    ids, features = prepare(inputs)
    result = _output_mask(body, tuple(widths), ids, features)
    return None if result is None else np.asarray(result)


@partial(jax.jit, static_argnums=(0, 1))
def _output_mask(body: KerasBody, widths: tuple[int, ...], ids: Sequence[jax.Array], features: Any) -> Any:
    """Computes nothing but the mask: the rest of the body is not needed for it, so that XLA leaves it out."""

    def zeros(variables: Sequence[Any]) -> list[jax.Array]:
        return [jnp.zeros(variable.shape, variable.dtype) for variable in variables]

    rows = [jnp.zeros((*each.shape, width), jnp.float32) for each, width in zip(ids, widths, strict=True)]
    variables = zeros(body.model.trainable_variables), zeros(body.model.non_trainable_variables)
    return keras.src.backend.get_keras_mask(body.call(*variables, rows, features, False)[0])
