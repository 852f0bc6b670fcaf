"""TensorFlow SavedModel directories, which take ids or strings and need only TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convert.checks.predictor import (
    Predictions,
    Predictor,
    log_probabilities,
    result_and_states,
    step_predictor,
)
from convert.formats.tf_network import Network
from convert.formats.tf_tokenizer import TfTokenizer
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.run_model import RunModel
from jaxlm.errors import InputError

SOFTMAX = ("Softmax", "RealDiv")  # the second in Keras before 2.3: exp(x) / sum(exp(x))
# operations that may follow either
PASSED = {"Cast", "ExpandDims", "Identity", "IdentityN", "Pack", "Reshape", "Squeeze", "Transpose"}
CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class SavedModel(tf.Module):
    """The saved module, with the signatures `serve`, `step`, `next_words` and `score`."""

    def __init__(self, run: RunModel, logits: bool = False):
        super().__init__(name="jaxlm")
        self.network = Network(run.model, logits)
        self.tokenizer = TfTokenizer(run.words, run.tokenization, run.dropped)
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
        """Returns the k most likely next words after strings `[batch]`, and their probabilities, both `[batch, k]`."""
        ids = tf.concat([self._line_ends(texts), self.tokenizer.encode(texts)], axis=1)
        tf.debugging.assert_positive(ids.row_lengths(), "a text has no word of the vocabulary")
        hidden = self.network.hidden(ids.to_tensor())
        last = tf.gather(hidden, tf.cast(ids.row_lengths(), tf.int32) - 1, batch_dims=1)
        k = tf.minimum(k, len(self.tokenizer))
        probabilities, best = tf.math.top_k(tf.nn.softmax(self.network.logits(last)), k)
        return {"words": tf.gather(self.tokenizer.words, best), "probabilities": probabilities}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def score(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the log-probability of each string with its line end, and its number of words, both `[batch]`.

        If the vocabulary has no `<eos>`, the first word of a string has no context, and does not count.
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
        """Returns one `<eos>` per text, if the vocabulary has it: the first word of a text follows a line end."""
        eos = self.tokenizer.eos
        column = tf.fill([tf.shape(texts)[0], 0 if eos is None else 1], 0 if eos is None else eos)
        return tf.RaggedTensor.from_tensor(column, row_splits_dtype=tf.int64)


def write(run: RunModel, target: Path, options: ExportOptions = DEFAULT_OPTIONS) -> None:
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
    """Returns the `Predictor` of a SavedModel from `write`, or from Keras' `export` or `save`. Executes its graph.

    Raises:
      InputError: it is another kind of model.
    """
    loaded = tf.saved_model.load(str(path))
    if "step" in loaded.signatures:
        return _step_predictor(loaded, path.name)
    name = next((name for name in ("serve", "serving_default") if name in loaded.signatures), None)
    if name is None:
        raise InputError(
            f"{path}: expected a signature `serve` or `serving_default`. Received: {[*loaded.signatures]}."
        )
    serve = loaded.signatures[name]
    arguments, outputs = list(serve.structured_input_signature[1].values()), list(serve.structured_outputs)
    if len(arguments) != 1 or arguments[0].shape.rank != 2 or len(outputs) != 1:
        raise InputError(f"{path}: expected one input of ids and one output. Received: {arguments} and {outputs}.")
    (argument,), (output,) = arguments, outputs
    shape, logits = serve.structured_outputs[output].shape, _has_logits(serve)
    if shape.rank not in (2, 3) or shape[-1] is None:
        raise InputError(f"{path}: expected outputs [batch, vocab] or [batch, time, vocab]. Received: {shape}.")
    last_only = shape.rank == 2
    fixed = (argument.shape[0] or shape[0], argument.shape[1])
    states = [variable for variable in serve.graph.variables if _is_state(variable, fixed[0])]

    def predict(ids: np.ndarray) -> Predictions:
        for state in states:
            state.assign(tf.zeros_like(state))
        serve = loaded.signatures[name]  # a signature alone does not keep its variables
        values = serve(**{argument.name: tf.constant(ids, argument.dtype)})[output].numpy()
        values = values[:, None] if last_only else values
        return Predictions(log_probabilities(values, bool(values.min() < 0) if logits is None else logits), {})

    # id 0 may be masked
    return Predictor(path.name, int(shape[-1]), predict, last_only, first_id=1, dtype=_dtype(serve), shape=fixed)


def _dtype(function: Any) -> str:
    """Returns the coarsest data type in the graph of a function, with which it computes."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for entry in graph.library.function for node in entry.node_def)]
    types = {value.type for node in nodes for value in node.attr.values()}
    return next((dtype.name for dtype in (tf.bfloat16, tf.float16) if dtype.as_datatype_enum in types), "float32")


def _has_logits(function: Any) -> bool | None:
    """Whether a function returns logits, judging by the last operation of its graph.

    None if the graph has only one opaque operation, as models that Keras exports from its JAX backend.
    """
    graph = function.graph.as_graph_def()
    functions = {entry.signature.name: entry for entry in graph.library.function}
    nodes, name = {node.name: node for node in graph.node}, function.outputs[0].name
    while node := nodes.get(name.split(":")[0]):
        index = int(name.split(":")[-1]) if ":" in name else 0
        if node.op in CALLS:
            called = functions[node.attr["f"].func.name]
            nodes = {inner.name: inner for inner in called.node_def}
            name = called.ret[called.signature.output_arg[index].name]
        elif node.op in PASSED:
            name = node.input[index if node.op == "IdentityN" else 0]
        else:
            return None if node.op == "XlaCallModule" else node.op not in SOFTMAX
    return None


def _is_state(variable: tf.Variable, batch_size: int | None) -> bool:
    """Whether a variable is a state of a stateful LSTM, which has a fixed batch size."""
    shape = tuple(variable.shape)
    return bool(batch_size) and not variable.trainable and variable.dtype.is_floating and shape[:1] == (batch_size,)


def _step_predictor(loaded: Any, name: str) -> Predictor:
    step = loaded.signatures["step"]
    specs = {spec.name: spec for spec in step.structured_input_signature[1].values()}
    result, states = result_and_states(name, specs, step.structured_outputs)
    zeros = {key: np.zeros((1, specs[key].shape[1]), np.float32) for key in states}

    def run(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arguments = {key: tf.constant(value) for key, value in ({"token_ids": ids} | carry).items()}
        return {key: value.numpy() for key, value in loaded.signatures["step"](**arguments).items()}

    vocab_size = int(step.structured_outputs[result].shape[-1])
    return step_predictor(name, vocab_size, run, zeros, result)
