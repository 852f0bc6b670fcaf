"""`LiveModel`: a user's Keras model while jaxlm trains it. Its weights, optimizer and states go in and come back."""

import dataclasses
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.fit.compile_settings import Compiled, read_compiled, read_optimizer_state, write_optimizer_state
from convert.fit.examples import Labels, Shape
from convert.keras_models.in_memory import from_keras, load_into_keras
from convert.keras_models.live_layers import as_array, read_live_model, states_of
from convert.weights.id_order import KerasIds, frequency_order
from convert.weights.optimizer_state import from_train_state, to_train_state
from jaxlm.config import TrainConfig
from jaxlm.data.vocabulary import log_unigram
from jaxlm.data.word_vectors import word_vectors
from jaxlm.errors import InputError, require
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh, on_host
from jaxlm.training.state import TrainState, gather_state, shard_state

InitialBiases = Literal["unigram"] | None
InitialEmbeddings = Literal["counts"] | None


class LiveModel(NamedTuple):
    """A live Keras model, and how jaxlm sees it."""

    model: Any
    layers: list[Any]  # those with weights: Embedding, LSTM, ..., Dense
    labels: Labels
    compiled: Compiled
    keras_ids: KerasIds | None = None  # None if the ids are sorted by frequency
    rank: np.ndarray | None = None  # [V] the id in jaxlm of each Keras id; None if they are the same

    @property
    def stateful(self) -> list[Any]:
        """The LSTM layers, if they keep their state between batches."""
        return [layer for layer in self.layers if getattr(layer, "stateful", False)]

    def sorted_by(self, shape: Shape) -> "LiveModel":
        """Returns this model with ids sorted by how often they are labels.

        Raises:
          InputError: the model is stateful, and the batches do not fit its states.
        """
        for layer in self.stateful:
            size = states_of(layer)[0].shape[0]
            require(shape.batch_size == size, "batch_size", f"{size}, as the stateful model has", shape.batch_size)
            expected = f"a multiple of {size} examples of equal length, for a stateful model"
            require(shape.is_regular, "x", expected, "another number or length")
            require(not shape.is_masked, "x", "no 0 for a stateful model that masks it", "0")
        order = frequency_order(shape.counts)
        if order is None:
            return self
        return self._replace(keras_ids=KerasIds(order), rank=np.argsort(order).astype(np.int32))

    def read(
        self,
        config: TrainConfig,
        shape: Shape,
        initial_biases: InitialBiases,
        initial_embeddings: InitialEmbeddings,
        mesh: Mesh | None,
    ) -> TrainState:
        """Makes a training state of the model's weights, its optimizer's state and its own states."""
        if mesh is not None:  # no device of it has a whole table
            with on_host():
                return shard_state(self.read(config, shape, initial_biases, initial_embeddings, None), mesh)
        model = from_keras(self.model)
        optimizer = read_optimizer_state(self.model, self.layers, self.compiled, model.config)
        if self.keras_ids is not None:
            model, optimizer = self.keras_ids.model_for_run(model, optimizer)
        counts = -np.sort(-shape.counts)
        self._initialize(model, counts, shape, config.seed, initial_biases, initial_embeddings)
        state = TrainState.create(model, config, counts)
        if self.stateful:
            states = [[jnp.array(as_array(array)) for array in states_of(layer)] for layer in self.stateful]
            state = dataclasses.replace(state, carry=tuple((c, h) for h, c in states))
        if optimizer is None:
            return state
        opt_state = to_train_state(optimizer, state.opt_state)
        return dataclasses.replace(state, opt_state=opt_state, step=jnp.int32(optimizer.steps))

    def _initialize(
        self,
        model: LanguageModel,
        counts: np.ndarray,
        shape: Shape,
        seed: int,
        initial_biases: InitialBiases,
        initial_embeddings: InitialEmbeddings,
    ) -> None:
        """Starts tables anew where the user asks for it."""
        if initial_biases is None and initial_embeddings is None:
            return
        has_biases = initial_biases is None or model.config.softmax_bias
        require(has_biases, "initial_biases", "None for a softmax without biases", initial_biases)
        vectors = None
        if initial_embeddings is not None:
            ids = shape.ids if self.rank is None else self.rank[shape.ids]
            vectors = word_vectors(ids, model.config.vocab_size, model.config.embedding_size)
        fresh = LanguageModel(model.config, log_unigram(counts), vectors, rngs=nnx.Rngs(seed))
        if initial_biases is not None:
            model.biases = fresh.biases
        if initial_embeddings is not None:
            model.embedding, model.weights = fresh.embedding, fresh.weights

    def write(self, state: TrainState, *, last: bool) -> None:
        """Puts a training state back into the model, its optimizer and its states.

        Args:
          state: to put back.
          last: whether no step follows, which would overwrite arrays that Keras still reads.
        """
        if state.mesh is not None:
            with on_host():
                state = gather_state(state)
        elif not last:
            state = jax.tree.map(jnp.copy, state)
        model, optimizer, steps = state.model, None, int(state.step)
        if self.compiled.has_state:
            rate = self.compiled.learning_rate(steps)
            optimizer = from_train_state(state.opt_state, state.config, rate, steps)
        if self.keras_ids is not None:
            model, optimizer = self.keras_ids.model_for_keras(model, optimizer)
        load_into_keras(model, self.model)
        if optimizer is not None:
            write_optimizer_state(self.model, self.layers, self.compiled, optimizer, model.config)
        for layer, carry in zip(self.stateful, state.carry, strict=False):  # none if the model is not stateful
            for variable, array in zip(states_of(layer), carry[::-1], strict=True):
                variable.assign(np.asarray(array))


def open_live_model(model: Any, sequence_length: int | None) -> LiveModel:
    """Reads what matters of a live model, and warns of settings that have no effect.

    Args:
      model: of Keras; it is built if it is not.
      sequence_length: of its inputs, to build it with.

    Raises:
      InputError: jaxlm cannot represent or train the model.
    """
    if not getattr(model, "built", False) and type(model).__name__ == "Sequential":
        model.build((None, sequence_length))
    layers, structure = read_live_model(model)
    for layer in layers[1:]:
        if not layer.trainable:
            raise InputError(
                f"Layer {layer.name!r} is not trainable, and fit_keras can keep only the embedding as it is."
                " Set trainable=True."
            )
    compiled = read_compiled(model, structure.logits)
    # the embedding's trainable=False is honoured
    unused = (*compiled.unused, *(setting for setting in structure.ignored if not setting.endswith("trainable=False")))
    if unused:
        warnings.warn(f"fit_keras does not use: {', '.join(unused)}", stacklevel=3)
    vocab_size = structure.config.vocab_size
    labels = Labels(vocab_size, structure.last_only, structure.mask_zero, compiled.ignore_class, compiled.reduction)
    return LiveModel(model, layers, labels, compiled)
