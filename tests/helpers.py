"""What several test modules share."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.cli import run
from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig
from jaxlm.files import write_json
from jaxlm.model.language_model import LanguageModel
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config
from jaxlm.training.state import TrainState

# chains of layers that only the long form of `ModelConfig` describes
CHAIN: dict[str, Any] = {
    "lstms": (LSTMConfig(9), LSTMConfig(6, use_bias=False)),
    "dense": (DenseConfig(11, "relu"), DenseConfig(4, "tanh", use_bias=False)),
}
BARE: dict[str, Any] = {
    "lstms": (LSTMConfig(7, use_bias=False), LSTMConfig(7, use_bias=False)),
    "dense": (DenseConfig(5),),
    "softmax_bias": False,
}


def quick_if(condition: Callable[..., bool], cases: Iterable[tuple]) -> list:
    """Returns cases for `pytest.mark.parametrize`; `make test` runs the quick ones, and `make test-all` all of them."""
    return [pytest.param(*case, marks=() if condition(*case) else pytest.mark.exhaustive) for case in cases]


@contextmanager
def branches_for(platform: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes the branches of `jax.lax.platform_dependent` for "cpu", or those for everything else, "default"."""

    def platform_dependent(*arguments: Any, **branches: Callable) -> Any:
        return branches[platform](*arguments)

    jax.clear_caches()
    with monkeypatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", platform_dependent)
        yield
    jax.clear_caches()


def make_random_model(num_layers: int = 2, seed: int = 1, **change: Any) -> LanguageModel:
    """Makes a small model of odd sizes with random weights and biases."""
    stack = {} if "lstms" in change else {"hidden_size": 7, "num_layers": num_layers}
    sizes = {"vocab_size": 23, "embedding_size": 5} | stack | change
    model = LanguageModel(ModelConfig(**sizes), rngs=nnx.Rngs(0))
    leaves = nnx.state(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), leaves))
    if not model.config.softmax_bias:
        model.biases[...] = jnp.zeros_like(model.biases[...])
    return model


def final_arrays(directory: Path) -> list[np.ndarray]:
    """Returns every array of the latest checkpoint, moments and LSTM state included."""
    config = load_config(directory)
    checkpoints, counts = Checkpoints(directory), np.ones(config.model.vocab_size, int)
    model = partial(LanguageModel, config.model)
    abstract = jax.eval_shape(lambda: TrainState.create(model(rngs=nnx.Rngs(0)), config.train, counts))
    state = checkpoints.restore(checkpoints.latest_step(), abstract)
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def rewrite_json(path: Path, old: str, new: str) -> None:
    """Replaces a string in a JSON file of ours once, and gives the file the right checksum."""
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    value = json.loads(text.replace(old, new, 1))
    version = value.pop("format")
    del value["checksum"]
    write_json(path, value, version)


def jaxlm(*arguments: object) -> int:
    """Runs a command in this process; returns its exit code."""
    return run([str(argument) for argument in arguments])


def error_line(capsys: pytest.CaptureFixture) -> str:
    """Returns the only line of errors."""
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
