"""TensorFlow SavedModel directories: ids or plain strings in, by TensorFlow's operators alone."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convert import comparison
from convert.keras_model import PLAIN, Form, tensor_of
from convert.runs import Run
from convert.tf_tokenizer import Words
from convert.weights import from_keras_list, language_model_weights, to_keras
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


class Network(tf.Module):
    """The model as TensorFlow variables: `weights` in Keras' order, a step, and a loop over time."""

    def __init__(self, model: LanguageModel, logits: bool = False):
        super().__init__(name="language_model")
        arrays = to_keras(language_model_weights(model), model.config)
        self.weights = [tf.Variable(tensor_of(array), trainable=False) for array in arrays.values()]
        self.hidden_size, self.num_layers = model.config.hidden_size, model.config.num_layers
        self.states = [f"{name}_{n}" for n in range(1, self.num_layers + 1) for name in "hc"]
        self.result = "logits" if logits else "probabilities"

    def cells(self, embedded: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        """One word through the LSTM stack.

        Args:
          embedded: `[batch, embedding_size]`.
          states: h_1, c_1, h_2, ... each `[batch, hidden_size]`.

        Returns:
          The new states.
        """
        inputs, new = embedded, []
        for n in range(self.num_layers):
            kernel, recurrent_kernel, bias = self.weights[1 + 3 * n : 4 + 3 * n]
            h, c = states[2 * n : 2 * n + 2]
            i, f, g, o = tf.split(inputs @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            inputs = tf.sigmoid(o) * tf.tanh(c)
            new += [inputs, c]
        return new

    def embed(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows of the embedding."""
        return tf.gather(self.weights[0], ids)

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """`[..., hidden_size]` to `[..., vocab_size]`, through the bottleneck where there is one."""
        shape = tf.shape(hidden)
        flat = tf.reshape(hidden, [-1, self.hidden_size])
        for kernel in self.weights[1 + 3 * self.num_layers : -2]:
            flat @= kernel
        # an identity between product and bias: LiteRT would fuse the two, and add a thousand small products one after
        # the other to a bias of about -12, which loses the digits that 1e-4 needs
        products = tf.reshape(flat @ self.weights[-2], tf.concat([shape[:-1], [self.weights[-1].shape[0]]], 0))
        return tf.maximum(products, tf.float32.min) + self.weights[-1]

    def outputs(self, logits: tf.Tensor) -> tf.Tensor:
        """Probabilities, or the logits where those were asked for."""
        return logits if self.result == "logits" else tf.nn.softmax(logits)

    def zeros(self, batch_size: tf.Tensor) -> list[tf.Tensor]:
        """The zero states."""
        return [tf.zeros([batch_size, self.hidden_size])] * (2 * self.num_layers)

    def hidden(self, ids: tf.Tensor) -> tf.Tensor:
        """`[batch, time]` ids to the last layer's outputs `[batch, time, hidden_size]`, from the zero states."""
        embedded = tf.transpose(self.embed(ids), [1, 0, 2])
        time = tf.shape(ids)[1]
        zeros = self.zeros(tf.shape(ids)[0])
        outputs = tf.TensorArray(tf.float32, size=time + 1, element_shape=[None, self.hidden_size])

        def body(t: tf.Tensor, outputs: tf.TensorArray, states: list[tf.Tensor]) -> tuple:
            states = self.cells(embedded[t], states)
            return t + 1, outputs.write(t + 1, states[-2]), states

        start = (tf.constant(0), outputs.write(0, zeros[0]), zeros)  # one more: an empty list does not stack
        outputs = tf.while_loop(lambda t, *_: t < time, body, start, maximum_iterations=time)[1]
        return tf.transpose(outputs.stack()[1:], [1, 0, 2])


class SavedModel(tf.Module):
    """What is saved: `serve`, `step`, `next_words` and `score`."""

    def __init__(self, run: Run, logits: bool = False):
        super().__init__(name="jaxlm")
        self.network, self.words = Network(run.model, logits), Words(run.words, run.split)
        self.step = step_function(self.network, None)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="token_ids")])
    def serve(self, token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Ids `[batch, time]` to probabilities `[batch, time, vocab_size]`."""
        logits = self.network.logits(self.network.hidden(token_ids))
        return {self.network.result: self.network.outputs(logits)}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="texts"), tf.TensorSpec([], tf.int32, name="k")]
    )
    def next_words(self, texts: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """Strings `[batch]` to the k likeliest next words and their probabilities, `[batch, k]`."""
        ids = tf.concat([self._ends(texts), self.words.encode(texts)], axis=1)
        hidden = self.network.hidden(ids.to_tensor())
        last = tf.gather(hidden, tf.cast(ids.row_lengths(), tf.int32) - 1, batch_dims=1)
        probabilities, best = tf.math.top_k(tf.nn.softmax(self.network.logits(last)), tf.minimum(k, len(self.words)))
        return {"words": tf.gather(self.words.words, best), "probabilities": probabilities}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def score(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Strings `[batch]` to the log-probability of each, its end of line included, and their numbers of words."""
        ids = self.words.encode(texts)
        ids = tf.concat([self._ends(texts), ids, self._ends(texts)], axis=1)
        hidden = self.network.hidden(ids.to_tensor()[:, :-1])
        labels, mask = ids.to_tensor()[:, 1:], tf.sequence_mask(ids.row_lengths() - 1, dtype=tf.float32)
        time = tf.shape(labels)[1]

        def body(t: tf.Tensor, total: tf.Tensor) -> tuple:  # one place at a time: never [batch, time, vocab_size]
            logits = self.network.logits(hidden[:, t])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, t], logits)
            return t + 1, total - losses * mask[:, t]

        start = (tf.constant(0), tf.zeros(tf.shape(texts)))
        total = tf.while_loop(lambda t, _: t < time, body, start, maximum_iterations=time)[1]
        return {"log_probabilities": total, "num_words": tf.cast(ids.row_lengths() - 1, tf.int32)}

    def _ends(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """An `<eos>` for each text: before its first word, a line has ended."""
        column = tf.fill([tf.shape(texts)[0], 1], self.words.eos)
        return tf.RaggedTensor.from_tensor(column, row_splits_dtype=tf.int64)


def step_function(network: Network, batch_size: int | None) -> Any:
    """A tf.function from a word and the states, by name, to probabilities and the new states."""
    specs = [tf.TensorSpec([batch_size], tf.int32, name="token_ids")]
    specs += [tf.TensorSpec([batch_size, network.hidden_size], tf.float32, name=name) for name in network.states]

    def step(token_ids: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        new = network.cells(network.embed(token_ids), list(values))
        return {network.result: network.outputs(network.logits(new[-2]))} | dict(zip(network.states, new, strict=True))

    return tf.function(step, input_signature=specs)


def write(run: Run, target: Path, form: Form = PLAIN) -> None:
    """Writes a SavedModel directory with the signatures of `SavedModel`.

    Args:
      run: model, words, and how text is cut.
      target: directory to make.
      form: `logits` leaves out the softmax of `serve` and `step`.

    References:
      https://github.com/google/re2/wiki/Syntax
    """
    module = SavedModel(run, form.logits)
    names = ("serve", "step", "next_words", "score")
    signatures = {name: getattr(module, name).get_concrete_function() for name in names}
    tf.saved_model.save(module, str(target), signatures | {"serving_default": signatures["serve"]})


def subject(path: Path) -> comparison.Subject:
    """Returns a SavedModel of `write`, or of Keras' `export` or `save`, as a `Subject`."""
    loaded = tf.saved_model.load(str(path))
    signatures = loaded.signatures
    if "step" in signatures:
        return _step_subject(signatures["step"], path.name)
    serve = signatures["serve" if "serve" in signatures else "serving_default"]
    (argument,) = serve.structured_input_signature[1].values()
    (output,) = serve.structured_outputs
    shape = serve.structured_outputs[output].shape
    rank = shape.rank

    def predict(ids: np.ndarray) -> comparison.Predictions:
        outputs = serve(**{argument.name: tf.constant(ids, argument.dtype)})[output].numpy()
        outputs = outputs[:, None] if rank == 2 else outputs
        logits = bool(outputs.min() < 0 or abs(outputs[0, 0].sum() - 1) > 1e-3)
        return comparison.Predictions(comparison.log_probabilities(outputs, logits), {})

    return comparison.Subject(path.name, int(shape[-1]), predict, last_only=rank == 2, first_id=1)  # id 0 may be masked


def _step_subject(step: Any, name: str) -> comparison.Subject:
    specs = {spec.name: spec for spec in step.structured_input_signature[1].values()}
    (result,) = {"logits", "probabilities"} & set(step.structured_outputs)
    zeros = {key: np.zeros((1, spec.shape[1]), np.float32) for key, spec in specs.items() if key != "token_ids"}

    def run(ids: np.ndarray, carry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arguments = {key: tf.constant(value) for key, value in ({"token_ids": ids} | carry).items()}
        return {key: value.numpy() for key, value in step(**arguments).items()}

    vocab_size = int(step.structured_outputs[result].shape[-1])
    return comparison.step_subject(name, vocab_size, run, zeros, result)


def read_weights(path: Path) -> LanguageModel:
    """Reads the variables of a SavedModel made by Keras 2 or 3, or by `write`; no graph of it is run.

    Raises:
      InputError: it is damaged, or its variables are not those of Embedding -> LSTM stack -> Dense.
    """
    from convert.keras_reader import reading

    with reading(path):
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        types = reader.get_variable_to_dtype_map()
        places = {key: _place(key) for key, kind in types.items() if kind.is_floating}
        keys = sorted((place, key) for key, place in places.items() if place)
        if not keys:
            raise InputError(f"{path} holds no weights that Keras could have made.")
        return from_keras_list([reader.get_tensor(key) for _, key in keys])


def _place(key: str) -> tuple[int, int] | None:
    """Where a variable stands in Keras' order: by its number, the embedding first, Dense last."""
    parts = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/")
    if "optimizer" in parts or not key.endswith("VARIABLE_VALUE"):
        return None
    if parts[-2:-1] in (["variables"], ["weights"]) and parts[-1].isdigit():
        return 1, int(parts[-1])
    leaves = {"embeddings": (0, 0), "kernel": (2, 0), "bias": (2, 1)}
    return leaves.get(parts[-1]) if parts[0].startswith("layer_with_weights") and len(parts) == 2 else None
