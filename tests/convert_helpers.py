"""What several test modules of convert share."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from keras import layers

from convert import cli
from convert.files.format_table import load_predictor
from convert.weights.optimizer_state import OptimizerState
from convert.weights.table import language_model_weights
from jaxlm import cli as jaxlm_cli
from jaxlm.config import TrainConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel

ROOT = Path(__file__).parents[1]


def run_convert(*arguments: object) -> int:
    """Runs `jaxlm-convert`, returns its exit code."""
    return cli.run([str(argument) for argument in arguments])


def run_jaxlm(*arguments: object) -> int:
    """Runs `jaxlm`, returns its exit code."""
    return jaxlm_cli.run([str(argument) for argument in arguments])


def run_python(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own, where jaxlm can be imported."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, timeout=300)


def run_without_jaxlm(code: str, directory: Path, **environment: str) -> None:
    """Runs code in a process where importing jaxlm or convert raises."""
    blocked = "import sys; sys.modules['jaxlm'] = sys.modules['convert'] = None\n"
    result = run_python("-c", blocked + code, cwd=directory, HOME=str(directory), PYTHONPATH="", **environment)
    assert result.returncode == 0, result.stderr


def skip_without(name: str) -> None:
    """Skips the test if what a format needs is not installed."""
    if name.endswith("onnx"):
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install jaxlm[onnx]")


def assert_models_equal(first: LanguageModel, second: LanguageModel) -> None:
    """Asserts that two models have the same weights, bit for bit."""
    ours, theirs = language_model_weights(first), language_model_weights(second)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_states_equal(first: OptimizerState, second: OptimizerState) -> None:
    """Asserts that two optimizer states are the same, bit for bit."""
    assert first[:-1] == second[:-1]
    jax.tree.map(np.testing.assert_array_equal, first.slots, second.slots)


def make_optimizer_state(model: LanguageModel, name: str) -> OptimizerState:
    """Makes a state of random moments, after 7 steps."""
    rng = np.random.default_rng(3)
    weights = language_model_weights(model)

    def moments(sign: float) -> dict[str, np.ndarray]:
        return {key: (0.01 * np.abs(rng.normal(size=w.shape)) * sign).astype(np.float32) for key, w in weights.items()}

    slots = {"mu": moments(-1.0), "nu": moments(1.0)} if name == "adam" else {"sum_of_squares": moments(1.0)}
    return OptimizerState(name, 7, 0.125, 0.0, 0.98 if name == "adam" else TrainConfig.beta_2, slots)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Truncates a file, flips some of its bits, or overwrites a piece of it."""
    changed = bytearray(data)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(changed[: rng.integers(len(changed))])
    if kind == 1:
        for position in rng.integers(len(changed), size=rng.integers(1, 20)):
            changed[position] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    start = int(rng.integers(len(changed)))
    changed[start : start + 64] = rng.bytes(min(64, len(changed) - start))
    return bytes(changed)


def assert_refused(path: Path, message: str) -> None:
    """Asserts that a model's file cannot be loaded, for a reason that fits in one line."""
    with pytest.raises(InputError, match=message) as raised:
        load_predictor(path)
    assert "\n" not in str(raised.value)


def make_keras_model() -> keras.Model:
    """Makes a Keras model whose layers have names that do not follow their order."""
    embed, lstm = layers.Embedding(23, 7, name="mine"), layers.LSTM(7, return_sequences=True, dropout=0.1)
    model = keras.Sequential([embed, lstm, layers.LSTM(7, return_sequences=True, name="a")])
    model.add(layers.Dense(23, activation="softmax"))
    model.build((None, None))
    return model
