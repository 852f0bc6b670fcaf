"""What several test modules share."""

import json
from pathlib import Path

import jax
from flax import nnx

from jaxlm.config import ModelConfig
from jaxlm.files import write_json
from jaxlm.model import LanguageModel


def make_random_model(num_layers: int = 2, seed: int = 1, **change: int) -> LanguageModel:
    """Makes a small model of odd sizes with random weights and biases."""
    sizes = {"vocab_size": 23, "embedding_size": 5, "hidden_size": 7} | change
    model = LanguageModel(ModelConfig(num_layers=num_layers, **sizes), rngs=nnx.Rngs(0))
    leaves = nnx.state(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), leaves))
    return model


def rewrite_json(path: Path, old: str, new: str) -> None:
    """Replaces a string in a JSON file of ours once, and gives the file the right checksum."""
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    value = json.loads(text.replace(old, new, 1))
    version = value.pop("format")
    del value["checksum"]
    write_json(path, value, version)
