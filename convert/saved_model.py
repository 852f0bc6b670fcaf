"""TensorFlow SavedModel directories. They take ids or plain strings, and need only TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convert.errors import library_errors
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.predictor import Predictions, Predictor, log_probabilities, result_and_states, step_predictor
from convert.runs import Run
from convert.tf_network import Network
from convert.tf_tokenizer import TfTokenizer
from convert.weights import model_from_keras_arrays
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


class SavedModel(tf.Module):
    """What is saved: the signatures `serve`, `step`, `next_words` and `score`."""

    def __init__(self, run: Run, logits: bool = False):
        super().__init__(name="jaxlm")
        self.network, self.tokenizer = Network(run.model, logits), TfTokenizer(run.words, run.tokenization)
        self.step = self.network.step_function(None)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="token_ids")])
    def serve(self, token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the probabilities `[batch, time, vocab_size]` for ids `[batch, time]`."""
        logits = self.network.logits(self.network.hidden(token_ids))
        return {self.network.result: self.network.outputs(logits)}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="texts"), tf.TensorSpec([], tf.int32, name="k")]
    )
    def next_words(self, texts: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the k most likely next words of strings `[batch]`, and their probabilities, both `[batch, k]`."""
        ids = tf.concat([self._line_ends(texts), self.tokenizer.encode(texts)], axis=1)
        tf.debugging.assert_positive(ids.row_lengths(), "a text has no word of the vocabulary")
        hidden = self.network.hidden(ids.to_tensor())
        last = tf.gather(hidden, tf.cast(ids.row_lengths(), tf.int32) - 1, batch_dims=1)
        k = tf.minimum(k, len(self.tokenizer))
        probabilities, best = tf.math.top_k(tf.nn.softmax(self.network.logits(last)), k)
        return {"words": tf.gather(self.tokenizer.words, best), "probabilities": probabilities}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def score(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the log-probability of each string, with the end of its line, and its number of words, `[batch]`.

        If the vocabulary has no `<eos>`, the first word of a string has nothing before it, and does not count.
        """
        ids = tf.concat([self._line_ends(texts), self.tokenizer.encode(texts), self._line_ends(texts)], axis=1)
        hidden = self.network.hidden(ids.to_tensor()[:, :-1])
        labels, mask = ids.to_tensor()[:, 1:], tf.sequence_mask(ids.row_lengths() - 1, dtype=tf.float32)
        time = tf.shape(labels)[1]

        def body(t: tf.Tensor, total: tf.Tensor) -> tuple:  # one position at a time, never [batch, time, vocab_size]
            logits = self.network.logits(hidden[:, t])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, t], logits)
            return t + 1, total - losses * mask[:, t]

        start = (tf.constant(0), tf.zeros(tf.shape(texts)))
        total = tf.while_loop(lambda t, _: t < time, body, start, maximum_iterations=time)[1]
        return {"log_probabilities": total, "num_words": tf.maximum(tf.cast(ids.row_lengths(), tf.int32) - 1, 0)}

    def _line_ends(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns an `<eos>`, if there is one, for each text: its first word follows the end of a line."""
        eos = self.tokenizer.eos
        column = tf.fill([tf.shape(texts)[0], 0 if eos is None else 1], 0 if eos is None else eos)
        return tf.RaggedTensor.from_tensor(column, row_splits_dtype=tf.int64)


def write(run: Run, target: Path, options: ExportOptions = DEFAULT_OPTIONS) -> None:
    """Writes a SavedModel directory with the signatures of `SavedModel`.

    Args:
      run: model, words and tokenization.
      target: directory to make.
      options: `logits` leaves out the softmax of `serve` and `step`.

    Raises:
      InputError: a weight is NaN or infinite.
    """
    module = SavedModel(run, options.logits)
    names = ("serve", "step", "next_words", "score")
    signatures = {name: getattr(module, name).get_concrete_function() for name in names}
    tf.saved_model.save(module, str(target), signatures | {"serving_default": signatures["serve"]})


def load_predictor(path: Path) -> Predictor:
    """Returns the `Predictor` of a SavedModel from `write`, or from Keras' `export` or `save`. Executes its graph."""
    signatures = tf.saved_model.load(str(path)).signatures
    if "step" in signatures:
        return _step_predictor(signatures["step"], path.name)
    serve = signatures["serve" if "serve" in signatures else "serving_default"]
    (argument,) = serve.structured_input_signature[1].values()
    (output,) = serve.structured_outputs
    shape = serve.structured_outputs[output].shape
    last_only = shape.rank == 2

    def predict(ids: np.ndarray) -> Predictions:
        outputs = serve(**{argument.name: tf.constant(ids, argument.dtype)})[output].numpy()
        outputs = outputs[:, None] if last_only else outputs
        logits = bool(outputs.min() < 0 or abs(outputs[0, 0].sum() - 1) > 1e-3)
        return Predictions(log_probabilities(outputs, logits), {})

    return Predictor(path.name, int(shape[-1]), predict, last_only, first_id=1)  # id 0 may be masked


def _step_predictor(step: Any, name: str) -> Predictor:
    specs = {spec.name: spec for spec in step.structured_input_signature[1].values()}
    result, states = result_and_states(name, specs, step.structured_outputs)
    zeros = {key: np.zeros((1, specs[key].shape[1]), np.float32) for key in states}

    def run(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arguments = {key: tf.constant(value) for key, value in ({"token_ids": ids} | carry).items()}
        return {key: value.numpy() for key, value in step(**arguments).items()}

    vocab_size = int(step.structured_outputs[result].shape[-1])
    return step_predictor(name, vocab_size, run, zeros, result)


def read_weights(path: Path) -> LanguageModel:
    """Reads the weights of a SavedModel from Keras 2 or 3, or from `write`. Does not execute its graph.

    Raises:
      InputError: it is damaged, or its variables are not those of Embedding -> LSTM stack -> Dense.
    """
    with library_errors(path, "loaded"):
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        types = reader.get_variable_to_dtype_map()
        positions = {key: _position(key) for key, dtype in types.items() if dtype.is_floating}
        keys = sorted((position, key) for key, position in positions.items() if position)
        if not keys:
            raise InputError(f"{path} has no weights that Keras could have written.")
        return model_from_keras_arrays([reader.get_tensor(key) for _, key in keys])


def _position(key: str) -> tuple[int, int] | None:
    """Returns the position of a variable in Keras' order: the embedding first, the others by number, Dense last."""
    parts = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/")
    if "optimizer" in parts or not key.endswith("VARIABLE_VALUE"):
        return None
    if parts[-2:-1] in (["variables"], ["weights"]) and parts[-1].isdigit():
        return 1, int(parts[-1])
    leaves = {"embeddings": (0, 0), "kernel": (2, 0), "bias": (2, 1)}
    return leaves.get(parts[-1]) if parts[0].startswith("layer_with_weights") and len(parts) == 2 else None
