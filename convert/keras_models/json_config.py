"""The JSON of Keras models (Keras 2 or 3, Sequential or functional), read as a chain of layers. Nothing is executed."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.errors import InputError

MODELS = ("Sequential", "Functional", "Model")
# names of functions of Keras and TensorFlow in files, which do not record the module
FUNCTIONS = {"softmax": "softmax", "softmax_v2": "softmax", "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid"}


class Layer(NamedTuple):
    """A Keras layer, from a live model or a file."""

    kind: str  # name of its class, such as "LSTM"
    config: dict[str, Any]  # from its get_config()
    path: tuple[str, ...] = ()  # its groups in the files of Keras 3, such as ("sequential", "lstm_1")
    names: tuple[str, ...] = ()  # its name, after those of the models around it


def layers_of_json(config: Any) -> list[Layer]:
    """Reads the layers from a model's JSON config, those of models inside it in their place.

    Raises:
      InputError: it is not such a config, or the layers are not one chain.
    """
    try:
        return _layers(config, (), ())
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"The config of the Keras model is damaged: {error!r}") from error
    except RecursionError as error:
        raise InputError("The config of the Keras model is damaged: too many nested models.") from error


def _layers(model: Any, path: tuple[str, ...], names: tuple[str, ...]) -> list[Layer]:
    kind, inner = model["class_name"], model["config"]
    if kind not in MODELS:
        raise InputError(f"Invalid Keras model: expected Sequential or Functional. Received: {kind}.")
    entries = inner["layers"] if isinstance(inner, dict) else inner  # a list in the first versions of Keras
    layers: list[Layer] = []
    counts: dict[str, int] = {}
    masked: list[Any] = []  # the inputs of Embeddings with `mask_zero`
    masks: set[tuple[str, int]] = set()  # of these inputs; Keras 3 lists their computation among the layers
    previous = None
    for entry in entries:
        if not isinstance(entry["class_name"], str):
            raise TypeError("class_name")
        name = str(entry.get("name") or entry["config"].get("name", "?"))
        key = _snake_case(entry["class_name"])
        counts[key] = counts.get(key, -1) + 1
        key = f"{key}_{counts[key]}" if counts[key] else key
        nodes = entry.get("inbound_nodes", [])
        inbound = _references(_without_masks(nodes, masks))
        if entry["class_name"] == "NotEqual" and inbound in masked and list(nodes[0]["args"][1:]) == [0]:
            masks.add((name, 0))
            continue
        if entry["class_name"] == "Embedding" and entry["config"].get("mask_zero"):
            masked.append(inbound)
        if previous is not None and kind != "Sequential" and inbound != [(previous, 0)]:
            layer = Layer(entry["class_name"], {"name": name})
            expected = f"expected a chain without branches or further outputs, and {previous!r} as its only input"
            raise refusal(layer, f"{expected}. Received: {inbound}")
        if entry["class_name"] in MODELS:
            layers += _layers(entry, (*path, key), (*names, name))
        else:
            settings = dict(entry["config"]) | {"name": name}
            layers.append(Layer(entry["class_name"], settings, (*path, key), (*names, name)))
        previous = name
    outputs = _references(inner.get("output_layers", [])) if isinstance(inner, dict) else []
    if kind != "Sequential" and outputs != [(previous, 0)]:
        raise InputError(
            f"Invalid Keras model: expected one output, that of its last layer {previous!r}. Received: {outputs}."
        )
    return layers


def _without_masks(nodes: Any, masks: set[tuple[str, int]]) -> Any:
    """Returns the calls of a layer without the argument `mask`, if it is one of these."""
    if not masks or not isinstance(nodes, list):
        return nodes
    kept = []
    for node in nodes:
        settings = dict(node["kwargs"]) if isinstance(node, dict) else {}
        if masks.issuperset(_references(settings.get("mask"))):
            settings.pop("mask", None)
        kept.append(node | {"kwargs": settings} if isinstance(node, dict) else node)
    return kept


def _snake_case(name: str) -> str:
    """Returns Keras' name for the group of a class in a file."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _references(nodes: Any) -> list[tuple[str, int]]:
    """Returns layer and tensor of each [name, node, tensor] in nested lists and dicts."""
    if isinstance(nodes, dict):
        nodes = list(nodes.values())
    if not isinstance(nodes, list | tuple):
        return []
    if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int) and isinstance(nodes[2], int):
        return [(nodes[0], nodes[2])]
    return [reference for node in nodes for reference in _references(node)]


def check_classes(config: Any) -> None:
    """Checks that a config names only classes of Keras, at any depth.

    Raises:
      InputError: it names another class, which Keras would import and run.
    """
    values = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    if isinstance(config, dict) and "class_name" in config:
        module, registered = config.get("module") or "keras", config.get("registered_name")
        if str(module).split(".")[0] not in ("keras", "tf_keras") or registered and ">" in str(registered):
            name = f"{config['class_name']} of {registered or module}"
            raise InputError(f"The model cannot be converted: expected only classes of Keras. Received: {name}.")
    for value in values:
        check_classes(value)


def map_objects(value: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Returns JSON in which each object is replaced by `change` of it, the inner ones first."""
    if isinstance(value, list):
        return [map_objects(entry, change) for entry in value]
    if not isinstance(value, dict):
        return value
    return change({key: map_objects(entry, change) for key, entry in value.items()})


def function_name(value: dict[str, Any]) -> Any:
    """Returns the name of a function that is known by name, as in Keras' own activations; other objects unchanged."""
    is_known = value.get("class_name") == "function" and str(value.get("config")) in FUNCTIONS
    return FUNCTIONS[str(value["config"])] if is_known else value


def is_step_model(config: Any) -> bool:
    """Whether a config is that of a single-step model of jaxlm, judging by its inputs and layers."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    kinds = {str(layer.get("class_name")) for layer in layers}
    names = [str(layer.get("name")) for layer in layers if layer.get("class_name") == "InputLayer"]
    known = kinds <= {"InputLayer", "Embedding", "LSTM", "Dense", "Activation"}
    return known and len(names) > 2 and all(re.fullmatch(r"token_ids|[hc]_\d+", name) for name in names)


def refusal(layer: Layer, reason: str) -> InputError:
    """Returns the error for a layer that cannot be converted, with the reason."""
    return InputError(f"Layer {layer.config.get('name', '?')!r} ({layer.kind}) cannot be converted: {reason}.")
