"""Splits a Keras model into embeddings, a body and the last Dense layer."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from convert.keras_models.live_layers import library_name, require_plain_weights
from jaxlm.errors import InputError

ADVICE = "fit_keras trains models that end in Dense(V) or ReversibleEmbedding, with a softmax or logits"


class Lookup(NamedTuple):
    """One use of an Embedding."""

    layer: Any
    ids: Any  # symbolic tensor
    outputs: Any  # symbolic tensor


class Head(NamedTuple):
    """The last layer, which is linear."""

    layer: Any  # Dense, ReversibleEmbedding, or one of the user's
    weights: Any  # variable
    transposed: bool  # whether these are [D, V]
    bias: Any = None  # variable [V]
    keeps_mask: bool = True  # whether its outputs have the mask of its inputs


class Cut(NamedTuple):
    """The parts of a model of Keras 3."""

    lookups: tuple[Lookup, ...]
    features: tuple[Any, ...]  # the model's other inputs that the body reads, symbolic tensors
    body: Any  # keras.Model([outputs of the lookups, features], inputs of the head)
    head: Head
    logits: bool  # whether no softmax follows


# the settings of a cut, and the cut: each one adds nodes to the layers
_CUTS: weakref.WeakKeyDictionary[Any, tuple[list[Any], Cut]] = weakref.WeakKeyDictionary()


def cut_model(model: Any) -> Cut:
    """Splits a functional or Sequential model of Keras 3.

    Raises:
      InputError: it does not end in a linear layer whose rows can be sampled; names the layer and the reason.
    """
    settings = [_settings(layer) for layer in model._flatten_layers(include_self=False)]
    if model not in _CUTS or _CUTS[model][0] != settings:
        _CUTS[model] = settings, _cut(model)
    return _CUTS[model][1]


def _settings(layer: Any) -> dict[str, Any]:
    """Returns the settings of a layer, on which a cut and the compiled body depend; a user may change them."""
    named = {name: getattr(layer, name, None) for name in ("lora_enabled", "quantization_mode", "axis")}
    is_of_user, plain = not library_name(layer), (bool, int, float, str, type(None))
    read = {name: value for name, value in vars(layer).items() if is_of_user or not name.startswith("_")}
    return named | {name: value for name, value in read.items() if isinstance(value, plain) or callable(value)}


def _cut(model: Any) -> Cut:
    inputs, outputs = keras.tree.flatten(model.inputs), keras.tree.flatten(model.outputs)
    if len(outputs) != 1:
        raise InputError(f"The model has {len(outputs)} outputs; {ADVICE}, and one output.")
    hidden, head, logits = _head(_without_models(model, inputs, outputs[0]))
    # Keras refuses a body whose outputs are its inputs; a default name could be that of one of the model's layers
    hidden = keras.layers.Identity(dtype=hidden.dtype, name="jaxlm_head_inputs")(hidden)
    kept: set[int] = set()  # embeddings whose weights the body reads elsewhere, too
    while True:
        lookups, features = _lookups(hidden, kept)
        body = _body([*(lookup.outputs for lookup in lookups), *features], hidden)
        variables = {id(variable) for variable in body.variables}
        if id(head.weights) in variables:
            raise InputError(f"Layer {head.layer.name!r} is used in the body, too; {ADVICE} that is used once.")
        shared = {id(lookup.layer) for lookup in lookups if id(lookup.layer.embeddings) in variables}
        if not shared:
            return Cut(tuple(lookups), tuple(features), body, head, logits)
        kept |= shared


def _body(inputs: list[Any], outputs: Any) -> Any:
    """Returns the model between tensors of a graph, without a change to the graph.

    If only some of the inputs come from `keras.Input`, Keras gives those a new node of their layer. The user's model
    begins with them, and could no longer be saved.
    """
    histories = [tensor._keras_history for tensor in inputs]
    body = keras.Model(inputs, outputs)
    for tensor, history in zip(inputs, histories, strict=True):
        tensor._keras_history = history
    return body


def _without_models(model: Any, inputs: list[Any], output: Any) -> Any:
    """Returns the output of the graph in which the models inside the model are replaced by their layers."""
    functional = getattr(model, "_functional", None) or model
    if not any(_is_model(layer) for layer in functional.layers):
        return output

    def expand(operation: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            given = [value for value in keras.tree.flatten(settings) if value is not None]  # such as training=False
            inner = getattr(operation, "_functional", None) or operation
            flat = _in_order(inner, *arguments) if _is_model(operation) and not given else None
            return operation(*arguments, **settings) if flat is None else inner._run_through_graph(flat, expand)

        return call

    return keras.tree.flatten(functional._run_through_graph(inputs, expand))[0]


def _is_model(operation: Any) -> bool:
    is_plain = isinstance(operation, keras.Sequential) and type(operation).call is keras.Sequential.call
    return is_plain or library_name(operation) == "Functional"


def _in_order(model: Any, inputs: Any) -> list[Any] | None:
    """Returns the inputs of a model inside the model in its order, by name as in Keras; None if Keras reshapes them."""
    by_name = isinstance(inputs, dict) and not isinstance(model._inputs_struct, dict)
    flat = [inputs[tensor.name] for tensor in model.inputs] if by_name else keras.tree.flatten(inputs)
    ranks = [[len(tensor.shape) for tensor in tensors] for tensors in (flat, model.inputs)]
    return flat if ranks[0] == ranks[1] else None


def _node(tensor: Any) -> tuple[Any, Any]:
    """Returns the operation that made a symbolic tensor, and the node of that call."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index]


def _head(output: Any) -> tuple[Any, Head, bool]:
    """Returns the inputs of the last layer, the layer, and whether no softmax follows it."""
    tensor, softmax = output, False
    while True:
        layer, node = _node(tensor)
        inner = layer.layer if library_name(layer) == "TimeDistributed" else layer
        kind = library_name(inner)
        inputs = keras.tree.flatten(node.arguments.args) or node.input_tensors  # without a mask
        if kind in ("Activation", "Softmax", "Dense") and len(inputs) == 1:
            if _is_softmax(inner):
                if softmax:
                    raise InputError(f"Layer {layer.name!r} applies a softmax before another one; {ADVICE}.")
                softmax = True
            if kind == "Dense":
                _check_head(inner)
                return inputs[0], Head(inner, inner.kernel, True, inner.bias), not softmax
            tensor = inputs[0]
            continue
        if _is_reversed(inner, node):
            return inputs[0], _reversible(inner), not softmax
        head = _linear(inner, inputs[0])
        if head is None:
            tied = " with the rows of an Embedding" if kind in ("Matmul", "Einsum") else ""
            raise InputError(f"The model ends in {type(inner).__name__} ({layer.name!r}){tied}; {ADVICE}.")
        return inputs[0], head, not softmax


def _is_softmax(layer: Any) -> bool:
    """Whether a layer applies a softmax; raises `InputError` if it applies something else."""
    if library_name(layer) == "Softmax":
        name = "softmax" if layer.axis in (-1, [-1]) else f"softmax over axis {layer.axis}"
    else:
        name = getattr(layer.activation, "__name__", str(layer.activation))
        name += "" if library_name(layer.activation) else ", which is not defined in Keras"
    if name not in ("softmax", "linear"):
        raise InputError(f"Layer {layer.name!r} applies {name}; {ADVICE}.")
    return name == "softmax"


def _check_head(layer: Any) -> None:
    require_plain_weights(layer, "fit_keras samples plain weights")
    if not layer.built:
        raise InputError(f"Layer {layer.name!r} is not built yet; call the model once.")


def _is_reversed(layer: Any, node: Any) -> bool:
    """Whether a layer is a ReversibleEmbedding, of Keras or keras_hub, that projects in this call."""
    return library_name(layer) == "ReversibleEmbedding" and bool(node.arguments.kwargs.get("reverse"))


def _reversible(layer: Any) -> Head:
    """Returns a ReversibleEmbedding as the last layer: with the rows of its Embedding if they are tied."""
    _check_head(layer)
    if layer.logit_soft_cap is not None:
        raise InputError(f"Layer {layer.name!r} applies logit_soft_cap={layer.logit_soft_cap}; {ADVICE}.")
    if layer.tie_weights:
        return Head(layer, layer.embeddings, False, keeps_mask=False)
    return Head(layer, layer.reverse_embeddings, True, keeps_mask=False)


def _linear(layer: Any, inputs: Any) -> Head | None:
    """Returns a layer of the user's as the last layer if it computes inputs @ rows.T + bias, such as a tied one."""
    weights = list(getattr(layer, "variables", ()))  # with the seeds of dropout
    rows = [variable for variable in weights if len(variable.shape) == 2 and variable.shape[1] == inputs.shape[-1]]
    biases = [variable for variable in weights if len(variable.shape) == 1]
    if len(rows) != 1 or len(weights) != 1 + len(biases) or len(biases) > 1:
        return None
    matrix, bias = keras.ops.convert_to_numpy(rows[0]).T, sum(map(keras.ops.convert_to_numpy, biases))
    sample = np.random.default_rng(0).normal(size=[size or 1 for size in inputs.shape]).astype(np.float32)
    large = 1e3 / max(np.abs(sample @ matrix).max(), 0.1)  # logits of 1000 show a cap; inputs fit in float16
    for each in (sample, large * sample):
        found, expected = keras.ops.convert_to_numpy(layer(each)), each @ matrix + bias
        if found.shape != expected.shape or not np.allclose(found, expected, 1e-2, 1e-2 * np.abs(expected).max()):
            return None
    return Head(layer, rows[0], False, biases[0] if biases else None, layer.supports_masking)


def _lookups(hidden: Any, kept: set[int]) -> tuple[list[Lookup], list[Any]]:
    """Returns the embeddings to look up before the body, by the order of their use, and the other inputs it reads."""
    lookups: list[Lookup] = []
    features: list[Any] = []
    seen: set[int] = set()

    def visit(tensor: Any) -> None:
        if id(tensor) in seen:
            return
        seen.add(id(tensor))
        layer, node = _node(tensor)
        if node.is_input:
            features.append(tensor)
        elif _is_table(layer, node) and id(layer) not in kept and all(map(_is_plain, node.input_tensors)):
            lookups.append(Lookup(layer, node.input_tensors[0], tensor))
        else:
            for each in node.input_tensors:
                visit(each)

    visit(hidden)
    return lookups, features


def _is_table(layer: Any, node: Any) -> bool:
    """Whether a layer is an Embedding that is nothing but a table."""
    return (
        library_name(layer) in ("Embedding", "ReversibleEmbedding")
        and not _is_reversed(layer, node)
        and not getattr(layer, "lora_enabled", False)
        and not getattr(layer, "quantization_mode", None)
        and layer.embeddings_constraint is None
        and layer.embeddings_regularizer is None
        and layer.activity_regularizer is None
    )


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor depends on inputs alone: on no weights, states or random numbers, and not on `training`."""
    return not any(getattr(each, "variables", ()) or _reads_training(each) for each in _operations(tensor))


def _reads_training(operation: Any) -> bool:
    reads = getattr(operation, "_call_has_training_arg", False)
    return reads and getattr(operation, "_fn_expects_training_arg", True)  # of a Lambda


def _operations(tensor: Any) -> Iterator[Any]:
    layer, node = _node(tensor)
    yield layer
    for each in node.input_tensors:
        yield from _operations(each)
