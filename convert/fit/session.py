"""`Session`: the weights, states and optimizer of a live Keras model, read into a `TrainState` and written back."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.fit.accumulation import Accumulation
from convert.fit.compile_settings import read_loss
from convert.fit.constraints import constraints_on
from convert.fit.examples import Labels
from convert.fit.live_optimizer import LiveOptimizer, open_optimizer
from convert.fit.network import Link, Network, Path, methods_of_user, open_network
from convert.fit.optimizers import AVERAGE, DECAYS, SETTLED, settle
from convert.fit.paths import get_path, put_path, replace_path
from convert.fit.variables import LiveVariables
from jaxlm.config import TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.data.vocabulary import log_unigram
from jaxlm.data.word_vectors import word_vectors
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import on_host, shard
from jaxlm.training.settings import class_order, resolve_config
from jaxlm.training.state import TrainState
from jaxlm.training.state_sharding import gather_state
from jaxlm.training.step import train_step

EVALUATION_METHODS = ("test_step", "compute_metrics", "make_test_function")  # which validation does not call
InitialBiases = Literal["unigram"] | None
InitialEmbeddings = Literal["counts"] | None


class Session(NamedTuple):
    """A live Keras model while jaxlm trains it."""

    model: Any
    network: Network
    optimizer: LiveOptimizer
    variables: LiveVariables
    accumulation: Accumulation | None  # with `gradient_accumulation_steps`
    constrain: Callable[[TrainState], TrainState]  # Keras' constraints in the body

    def read(self, config: TrainConfig, counts: np.ndarray) -> TrainState:
        """Makes a training state of the model's weights, its states and its optimizer's state.

        Args:
          config: of the training.
          counts: `[V]` how often each id is a label.
        """
        config = resolve_config(config, self.network.vocab_size)
        parts: dict[str, Any] = {"tables": {}, "dense": {}, "other": {}, "carry": {}, "opt_state": {"dense": {}}}
        for link in self.network.links:
            put_path(parts, link.path, self.variables.read(link.variable, link.transposed))
        for link, slot, variable in self._slots():
            put_path(parts, _slot_path(link.path, slot), self.variables.read(variable, link.transposed))
        if self.optimizer.rule.weight_decay:
            for link in self.network.trained:
                decay = jnp.float32(self.optimizer.weight_decay_of(link.variable))
                put_path(parts, _slot_path(link.path, DECAYS), decay)
        frozen = set(self.network.frozen)
        if "biases" not in parts["tables"]:
            parts["tables"]["biases"] = jnp.zeros(self.network.vocab_size, jnp.float32)
            frozen.add("biases")
        body = self.network.body(config.compute_dtype)
        if not self.network.is_chain:
            parts |= {name: _as_list(parts[name]) for name in ("dense", "other")}
        carry = tuple((states[0], states[1]) for _, states in sorted(parts["carry"].items()))
        state = TrainState.for_body(
            body,
            parts["tables"],
            parts["dense"],
            config,
            counts,
            lookups=self.network.lookups,
            other=parts["other"],
            carry=carry or self.network.zero_carry(config.batch_size),
            tx=self.optimizer.rule,
            frozen=frozen,
            order=class_order(counts),
            opt_state=self._opt_state(parts["opt_state"]) if self.optimizer.has_state else None,
        )
        if self.accumulation is not None:
            self.accumulation.refresh(state)
        return jax.block_until_ready(self._at_step(state, self.optimizer.steps()))

    def _opt_state(self, slots: dict[str, Any]) -> dict[str, Any]:
        """Returns the Optax state of each trained table and of the dense parameters; frozen tables have none."""
        tables = [link.path[1] for link in self.network.links if link.path[0] == "tables" and link.trained]
        rule = self.optimizer.rule
        names = rule.slots + [DECAYS] * bool(rule.weight_decay)
        dense = {name: slots["dense"].get(name, {}) for name in names}
        if not self.network.is_chain:
            dense = {name: _as_list(arrays) for name, arrays in dense.items()}
        return {table: slots.get(table, {}) for table in tables} | {"dense": dense}

    def _at_step(self, state: TrainState, steps: int) -> TrainState:
        """Returns a state after a number of steps, with the averages of all rows at that step."""
        updated, u_product = steps - steps % self.optimizer.rule.batches, self.optimizer.u_product()
        params, opt_state, settled = state.tables | {"dense": state.dense}, {}, np.int32(steps)
        for name, part in state.opt_state.items():  # an array for each part: a step donates all of them
            opt_state[name] = part | {"step": jnp.int32(updated), "u_product": jnp.float32(u_product)}
            if self.optimizer.rule.has_averages:
                opt_state[name][SETTLED] = jax.tree.map(lambda each: jnp.full(each.shape[:1], settled), params[name])
        return dataclasses.replace(state, step=jnp.int32(steps), opt_state=opt_state)

    def _slots(self) -> list[tuple[Link, str, Any]]:
        """Returns each variable of the optimizer that belongs to a weight."""
        links = self.network.trained
        return [(link, slot, variable) for link in links for slot, variable in self.optimizer.slots_of(link.variable)]

    def step(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, jax.Array]:
        """Runs `jaxlm.train_step`, or the same with `gradient_accumulation_steps`, and applies constraints.

        Args:
          state: donated.
          batch: to train on.
          step: number of the batch, from 0.
        """
        if self.accumulation is not None:
            state, loss = self.accumulation.step(state, batch, step)
        else:
            state, loss = train_step(state, batch, self.optimizer.learning_rate(step))
        return self.constrain(state), loss

    def refresh(self, state: TrainState) -> TrainState:
        """Returns a state with the changes of callbacks to the model, its states or its optimizer since `read`."""
        places = [(link.variable, link.path, link.transposed) for link in self.network.links]
        places += [(variable, _slot_path(link.path, slot), link.transposed) for link, slot, variable in self._slots()]
        for variable, path, transposed in places:
            if self.variables.has_changed(variable):
                array = self.variables.read(variable, transposed)
                if state.mesh is not None:
                    name = "/".join(map(str, path))
                    array = shard({name: array}, state.mesh)[name]
                state = replace_path(state, path, array)
        if self.accumulation is not None:
            self.accumulation.refresh(state)
        steps = self.optimizer.steps()
        return state if self.optimizer.inner is None or steps == int(state.step) else self._at_step(state, steps)

    def settle(self, state: TrainState, *, overwrite: bool = False) -> TrainState:
        """Returns a state with its moving averages after its last step; with `overwrite`, as its weights, too."""
        rule, opt_state = self.optimizer.rule, dict(state.opt_state)
        if not rule.has_averages:
            return state
        trained = {name: table for name, table in state.tables.items() if name not in state.frozen}
        params = trained | {"dense": state.dense}
        for name, param in params.items():
            opt_state[name] = settle(rule, param, opt_state[name], int(state.step) % rule.batches)
        state = dataclasses.replace(state, opt_state=opt_state)
        if not overwrite:
            return state
        params = {name: jax.tree.map(jnp.copy, opt_state[name][AVERAGE]) for name in params}
        dense = params.pop("dense")
        return self.constrain(dataclasses.replace(state, tables=state.tables | params, dense=dense))

    def write(self, state: TrainState, *, last: bool) -> None:
        """Puts a training state back into the model, its states and its optimizer.

        Args:
          state: to put back.
          last: False if a step follows: Keras gets copies, since the step overwrites its arrays.
        """
        if state.mesh is not None:
            with on_host():
                state, last = gather_state(state), True
        for link in self.network.links:
            self.variables.write(link.variable, get_path(state, link.path), link.transposed, last)
        for link, slot, variable in self._slots():
            self.variables.write(variable, get_path(state, _slot_path(link.path, slot)), link.transposed, last)
        self.optimizer.set_steps(int(state.step), float(state.opt_state["dense"]["u_product"]))
        if self.accumulation is not None:
            self.accumulation.write()

    def initialize(
        self,
        state: TrainState,
        counts: np.ndarray,
        ids: np.ndarray,
        initial_biases: InitialBiases,
        initial_embeddings: InitialEmbeddings,
    ) -> TrainState:
        """Returns a state with new initial values of its tables, according to the arguments.

        Args:
          state: on one device.
          counts: `[V]` how often each id is a label.
          ids: `[N]` all ids that are read, one sequence after the other.
          initial_biases: "unigram" for the log-probabilities of the labels.
          initial_embeddings: "counts" for word vectors counted from `ids`.
        """
        tables = dict(state.tables)
        if initial_biases is not None:
            tables["biases"] = jnp.array(log_unigram(counts))
        if initial_embeddings is not None and self.network.structure is not None:
            config = self.network.structure.config
            ranks = np.arange(counts.size) if state.order is None else np.asarray(state.order.ranks)
            vectors = word_vectors(ranks[ids], config.vocab_size, config.embedding_size)[ranks]
            fresh = LanguageModel(config, None, vectors, rngs=nnx.Rngs(state.config.seed))
            tables |= {"embedding": fresh.input_rows, "weights": fresh.weights[...]}
        return dataclasses.replace(state, tables=tables)


def open_session(model: Any, shape: tuple[int | None, ...]) -> tuple[Session, Labels]:
    """Opens a live model for training, and warns of settings that have no effect.

    Args:
      model: of Keras; it is built if it is not.
      shape: of a batch of its inputs, to build it with.

    Raises:
      InputError: the model or its optimizer cannot be used.
    """
    network = open_network(model, shape)
    optimizer, loss = open_optimizer(model), read_loss(model, network.logits)
    methods = [f"{type(model).__name__}.{name}" for name in methods_of_user(model, EVALUATION_METHODS)]
    unused = (*optimizer.unused, *loss.unused, *network.unused, *methods)
    if unused:
        warnings.warn(f"fit_keras does not use: {', '.join(unused)}", stacklevel=3)
    structure = network.structure
    masked = structure is not None and structure.mask_zero
    allows_empty = structure is None or not structure.config.dense
    labels = Labels(network.vocab_size, network.last_only, masked, loss.ignore_class, loss.reduction, allows_empty)
    optimizer.build(model)  # before the first step, so that nothing fails after the last one
    accumulation = None if optimizer.rule.batches == 1 else Accumulation(optimizer, network.trained)
    constrain = constraints_on(() if network.is_chain else network.trained)
    return Session(model, network, optimizer, LiveVariables(), accumulation, constrain), labels


def _slot_path(path: Path, slot: str) -> Path:
    part, *rest = path
    return ("opt_state", rest[0], slot) if part == "tables" else ("opt_state", "dense", slot, *rest)


def _as_list(arrays: dict[int, Any]) -> list[Any]:
    return [arrays[i] for i in range(len(arrays))]
