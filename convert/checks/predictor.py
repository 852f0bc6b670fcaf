"""`Predictor`: the predictions of a model of any format, for comparisons."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.errors import InputError
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import Carry


class Predictions(NamedTuple):
    """Predictions for a batch of ids."""

    log_probabilities: np.ndarray  # [batch, time, vocab_size] float32; time is 1 if last_only
    states: Mapping[str, np.ndarray]  # "h_1", "c_1", ... [batch, hidden_size] at the end, if the model returns them


class Predictor(NamedTuple):
    """A model in a comparison."""

    name: str
    vocab_size: int
    predict: Callable[[np.ndarray], Predictions]  # for ids [batch, time] int32, from the zero state
    last_only: bool = False  # predicts only the word after the last id
    first_id: int = 0  # 1 if id 0 is masked
    dtype: str = "float32"  # of the weights, or of the computation
    shape: tuple[int | None, int | None] = (None, None)  # batch size and length, if fixed


Step = Callable[[np.ndarray, dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def log_probabilities(outputs: np.ndarray, logits: bool) -> np.ndarray:
    """Returns log-probabilities, float32, from a model's probabilities or logits."""
    outputs = np.asarray(outputs, np.float32)
    if logits:
        return np.asarray(jax.nn.log_softmax(outputs))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(outputs)


def language_model_predictor(model: LanguageModel, name: str = "jaxlm") -> Predictor:
    """Returns the `Predictor` of a `LanguageModel`."""
    graphdef, params = nnx.split(model)

    def predict(ids: np.ndarray) -> Predictions:
        result, carry = _run(graphdef, params, jnp.asarray(ids))
        states: dict[str, np.ndarray] = {}
        for n, (c, h) in enumerate(carry, start=1):
            states |= {f"h_{n}": np.asarray(h), f"c_{n}": np.asarray(c)}
        return Predictions(np.asarray(result), states)

    return Predictor(name, model.config.vocab_size, predict)


@partial(jax.jit, static_argnums=0)
@in_float32
def _run(graphdef: nnx.GraphDef, params: nnx.State, ids: jax.Array) -> tuple[jax.Array, tuple[Carry, ...]]:
    logits, carry = nnx.merge(graphdef, params)(ids)
    return jax.nn.log_softmax(logits), carry


def result_and_states(
    name: str, inputs: Collection[str], outputs: Collection[str], suffix: str = ""
) -> tuple[str, list[str]]:
    """Returns the names of the result, "probabilities" or "logits", and of the states of a model with state inputs.

    Args:
      name: of the model, for the error message.
      inputs: names of its inputs: token_ids and the states.
      outputs: names of its outputs: the result and the new states.
      suffix: of the names of the new states.

    Raises:
      InputError: the inputs and outputs are not these.
    """
    results = {"logits", "probabilities"} & set(outputs)
    states = [key for key in inputs if key != "token_ids"]
    new_states = {f"{key}{suffix}" for key in states}
    if "token_ids" not in inputs or len(results) != 1 or new_states != set(outputs) - results:
        raise InputError(
            f"{name}: expected token_ids and states as inputs, probabilities or logits and states as outputs."
            f" Received: {sorted(inputs)} and {sorted(outputs)}."
        )
    return results.pop(), states


def step_predictor(
    name: str,
    vocab_size: int,
    step: Step,
    zeros: Mapping[str, np.ndarray],
    result: str,
    dtype: str = "float32",
    batch_of_one: bool = False,
) -> Predictor:
    """Returns the `Predictor` of a model that reads one word at a time.

    Args:
      name: of the model, for messages.
      vocab_size: of the model.
      step: takes ids `[batch]` and the states, returns its outputs by their names.
      zeros: the zero states by their names, each `[1, hidden_size]`.
      result: name of the output `[batch, vocab_size]`: "probabilities" or "logits".
      dtype: of the weights.
      batch_of_one: whether the model accepts only a batch of 1.
    """

    def read(ids: np.ndarray) -> Predictions:
        carry = {key: np.repeat(zero, len(ids), axis=0) for key, zero in zeros.items()}
        rows = []
        for column in ids.T:
            outputs = step(column, carry)
            carry = {key: outputs[key] for key in carry}
            rows.append(log_probabilities(outputs[result], result == "logits"))
        return Predictions(np.stack(rows, axis=1), carry)

    def predict(ids: np.ndarray) -> Predictions:
        if not batch_of_one:
            return read(ids)
        batch = [read(row[None]) for row in ids]
        states = {key: np.concatenate([row.states[key] for row in batch]) for key in zeros}
        return Predictions(np.concatenate([row.log_probabilities for row in batch]), states)

    return Predictor(name, vocab_size, predict, dtype=dtype)
