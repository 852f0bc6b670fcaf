"""The language model in TensorFlow operations, for SavedModels and LiteRT files."""

from typing import Any

import tensorflow as tf

from convert.keras_models.builder import tensor_of
from convert.weights.table import language_model_weights, to_keras_weights
from jaxlm.model.language_model import LanguageModel


class Network(tf.Module):
    """The model as TensorFlow variables.

    Args:
      model: the language model.
      logits: whether the softmax is left out.

    Attributes:
      weights: variables in Keras' order.
      names: of the weights, their Keras paths.
      states: names of the LSTM states: h_1, c_1, h_2, ...
      result: name of the output, "probabilities" or "logits".
    """

    def __init__(self, model: LanguageModel, logits: bool = False):
        super().__init__(name="language_model")
        arrays = to_keras_weights(language_model_weights(model), model.config)
        self.weights = [tf.Variable(tensor_of(array), trainable=False) for array in arrays.values()]
        self.names, self.config = tuple(arrays), model.config
        self.states = [f"{name}_{n}" for n in range(1, len(model.config.lstms) + 1) for name in "hc"]
        self.result = "logits" if logits else "probabilities"

    def _add(self, products: tf.Tensor, bias: str) -> tf.Tensor:
        """Adds a bias, if the model has it."""
        return products + self.weight(bias) if bias in self.names else products

    def weight(self, name: str) -> tf.Variable:
        """Returns the variable of a Keras path."""
        return self.weights[self.names.index(name)]

    def embed(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the embedding rows of ids."""
        return tf.gather(self.weights[0], ids)

    def cells(self, embedded: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        """Passes one word through the LSTM stack.

        Args:
          embedded: `[batch, embedding_size]`.
          states: h_1, c_1, h_2, ... each `[batch, size of the layer]`.

        Returns:
          The new states.
        """
        inputs, new = embedded, []
        for n in range(len(self.config.lstms)):
            cell = f"lstm_{n + 1}/lstm_cell"
            h, c = states[2 * n : 2 * n + 2]
            products = inputs @ self.weight(f"{cell}/kernel") + h @ self.weight(f"{cell}/recurrent_kernel")
            i, f, g, o = tf.split(self._add(products, f"{cell}/bias"), 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            inputs = tf.sigmoid(o) * tf.tanh(c)
            new += [inputs, c]
        return new

    def zeros(self, batch_size: tf.Tensor) -> list[tf.Tensor]:
        """Returns the zero states."""
        return [tf.zeros([batch_size, layer.size]) for layer in self.config.lstms for _ in "hc"]

    def hidden(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the last layer's outputs `[batch, time, hidden_size]` for ids `[batch, time]`, from zero states."""
        embedded = tf.transpose(self.embed(ids), [1, 0, 2])  # [time, batch, embedding_size]
        time = tf.shape(ids)[1]
        zeros = self.zeros(tf.shape(ids)[0])
        outputs = tf.TensorArray(tf.float32, size=time + 1, element_shape=[None, self.config.hidden_size])

        def body(t: tf.Tensor, outputs: tf.TensorArray, states: list[tf.Tensor]) -> tuple:
            states = self.cells(embedded[t], states)
            return t + 1, outputs.write(t + 1, states[-2]), states

        start = (tf.constant(0), outputs.write(0, zeros[-1]), zeros)  # one extra: an empty TensorArray does not stack
        outputs = tf.while_loop(lambda t, *_: t < time, body, start, maximum_iterations=time)[1]
        return tf.transpose(outputs.stack()[1:], [1, 0, 2])

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Returns logits `[..., vocab_size]` of outputs `[..., hidden_size]`, through the Dense layers."""
        shape = tf.shape(hidden)
        flat = tf.reshape(hidden, [-1, self.config.hidden_size])
        for n, layer in enumerate(self.config.dense, start=1):
            activate = {"linear": tf.identity, "relu": tf.nn.relu, "tanh": tf.tanh}[layer.activation]
            flat = activate(self._add(flat @ self.weight(f"dense_{n}/kernel"), f"dense_{n}/bias"))
        # the maximum changes nothing, but keeps product and bias apart: LiteRT would fuse them, and add a thousand
        # small products one by one to a bias of about -12, which loses the digits that the tolerance of 1e-4 needs
        products = flat @ self.weight("softmax/kernel")
        products = tf.reshape(products, tf.concat([shape[:-1], [self.config.vocab_size]], 0))
        return self._add(tf.maximum(products, tf.float32.min), "softmax/bias")

    def outputs(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the output that `result` names."""
        return logits if self.result == "logits" else tf.nn.softmax(logits)

    def step_function(self, batch_size: int | None) -> Any:
        """Returns a tf.function that takes a word `[batch]` and the states, and returns the output and new states."""
        specs = [tf.TensorSpec([batch_size], tf.int32, name="token_ids")]
        sizes = [layer.size for layer in self.config.lstms for _ in "hc"]
        for name, size in zip(self.states, sizes, strict=True):
            specs.append(tf.TensorSpec([batch_size, size], tf.float32, name=name))

        def step(token_ids: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
            new = self.cells(self.embed(token_ids), list(values))
            return {self.result: self.outputs(self.logits(new[-2]))} | dict(zip(self.states, new, strict=True))

        return tf.function(step, input_signature=specs)
