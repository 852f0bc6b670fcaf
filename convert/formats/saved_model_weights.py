"""Reads the weights of SavedModels made by Keras 2, Keras 3 or `saved_model.write`."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from convert.checks.comparison import compare, precomputed
from convert.checks.predictor import Predictor, language_model_predictor
from convert.errors import library_errors
from convert.formats.saved_model import load_predictor
from convert.keras_models.json_config import layers_of_json, map_objects
from convert.keras_models.supported_layers import Structure, read_structure
from convert.weights.cudnn import as_lstm_arrays
from convert.weights.table import language_model_weights, model_from_keras_arrays, model_from_weights
from jaxlm.config import Activation, ModelConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel

LEAVES = ("embeddings", "kernel", "bias")  # weights of the layers that Keras 2 stores by their own names


def read_model(path: Path) -> tuple[LanguageModel, tuple[str, ...], tuple[str, ...]]:
    """Reads a SavedModel from Keras 2 or 3, or from `write`.

    Keras 2 also saves the model's JSON. Without it, the activations of Dense layers before the last are those that
    reproduce the predictions of the graph, which is executed.

    Returns:
      The model, the assumptions about it, and the settings that training ignores.

    Raises:
      InputError: it is damaged, jaxlm cannot represent it, or its variables are those of other layers.
    """
    structure = _read_structure(path)
    if structure is not None:
        return read_weights(path, structure.config), structure.assumed, structure.ignored
    model = read_weights(path)
    if model.config.dense:
        model = _with_activations(model, precomputed(load_predictor(path)))
    words = [f"Dense({layer.size}) {layer.activation}" for layer in model.config.dense]
    return model, (f"activations, which reproduce the graph's predictions: {', '.join(words)}",) if words else (), ()


def _with_activations(model: LanguageModel, truth: Predictor) -> LanguageModel:
    """Returns the model with the activations of its Dense layers that reproduce the predictions of `truth` best.

    Small inputs make them alike: tanh(x) is nearly x.

    Raises:
      InputError: none of them reproduces the predictions.
    """
    weights, layers = language_model_weights(model), model.config.dense
    choices: tuple[Activation, ...] = ("relu", "tanh", "linear")
    found: list[tuple[float, LanguageModel]] = []
    for names in itertools.product(choices, repeat=len(layers)):
        dense = (dataclasses.replace(layer, activation=name) for layer, name in zip(layers, names, strict=True))
        config = dataclasses.replace(model.config, dense=tuple(dense))
        candidate = model_from_weights(weights, config)
        comparison = compare(language_model_predictor(candidate), truth)
        found += [(comparison.max_difference, candidate)] if comparison.within_tolerance else []
    if not found:
        expected = "expected relu, tanh or linear Dense layers"
        raise InputError(f"{truth.name}: {expected}; none of them reproduces its graph.")
    return min(found, key=lambda each: each[0])[1]


def _read_structure(path: Path) -> Structure | None:
    """Reads the JSON that Keras 2 saves with the graph; None if there is none."""
    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        return None
    from tensorflow.python.keras.protobuf import saved_metadata_pb2

    with library_errors(path, "loaded"):
        nodes = saved_metadata_pb2.SavedMetadata.FromString(metadata.read_bytes()).nodes
        config = json.loads(next((node.metadata for node in nodes if node.node_path == "root"), "null"))
        return read_structure(layers_of_json(map_objects(config, _untupled)))


def _untupled(value: dict[str, Any]) -> Any:
    """Returns the list that stands for a tuple in Keras' JSON; other objects unchanged."""
    return value.get("items") if value.get("class_name") == "__tuple__" else value


def read_weights(path: Path, config: ModelConfig | None = None) -> LanguageModel:
    """Reads the weights of a SavedModel from Keras 2 or 3, or from `write`. Does not execute its graph.

    Args:
      path: its directory.
      config: of the model; None takes it from the shapes.

    Raises:
      InputError: it is damaged, or its variables are not those of Embedding -> LSTM stack -> Dense layers.
    """
    with library_errors(path, "loaded"):
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        types = reader.get_variable_to_dtype_map()
        keys = _in_order([key for key, dtype in types.items() if dtype.is_floating])
        if not keys:
            raise InputError(f"{path}: expected the weights of a Keras model. Received: no weights.")
        return model_from_keras_arrays(as_lstm_arrays([reader.get_tensor(key) for key in keys]), config)


def _in_order(keys: Sequence[str]) -> list[str]:
    """Returns the keys of the weights in Keras' order: numbered keys at their position, the others in the gaps."""
    numbered: dict[int, str] = {}
    named: list[tuple[int, int, str]] = []
    for key in keys:
        parts = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/")
        if "optimizer" in parts or not key.endswith("VARIABLE_VALUE"):
            continue
        if parts[-2:-1] in (["variables"], ["weights"]) and parts[-1].isdigit():
            numbered[int(parts[-1])] = key
        elif parts[0].startswith("layer_with_weights-") and len(parts) == 2 and parts[1] in LEAVES:
            named.append((int(parts[0].split("-")[1]), LEAVES.index(parts[1]), key))
    rest = iter([key for _, _, key in sorted(named)])
    places = range(max(numbered, default=-1) + 1)
    ordered = [numbered[place] if place in numbered else next(rest, "") for place in places]
    return [key for key in [*ordered, *rest] if key]
