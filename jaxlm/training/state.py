"""`TrainState`: all that a training step reads and writes."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxlm.candidate_sampling.distributions import UnigramTable, unigram_table
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.corpus import Corpus
from jaxlm.data.word_vectors import word_vectors
from jaxlm.errors import require
from jaxlm.matmul import fast_dtype
from jaxlm.model.language_model import LanguageModel, merge_params, shard_model, split_params
from jaxlm.model.lstm import Carry
from jaxlm.parallel.mesh import (
    Mesh,
    leaf_name,
    map_data,
    pad,
    padded_rows,
    padded_streams,
    place,
    row_spec,
    shard,
    sharded_dim,
    spec_of,
)
from jaxlm.parallel.processes import require_same

logger = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a training step reads and writes. A step donates it; use only the state it returns.

    On a mesh (`jaxlm.make_mesh`), tables and their optimizer states are cut by rows along `vocab`, and padded with rows
    of zeros to equal shards; the carry is cut by streams, along both axes.

    Attributes:
      step: int32 scalar, steps done.
      tables: `embedding` `[V, E]` unless tied, `weights` `[V, softmax_size]`, `biases` `[V]`, updated by rows.
      dense: the LSTM's and the bottleneck's parameters.
      opt_state: the Optax state of each table by its name, and of the dense parameters, "dense".
      carry: LSTM state at the end of the last batch.
      key: `jax.random.key`; step n draws from `fold_in(key, n)`.
      skipped: int32 `[2]`, steps skipped because of a loss or gradient that was not finite: in all, and in a row.
      unigrams: the table of the unigram sampler, or None.
      model_config: the `ModelConfig`.
      config: the `TrainConfig`.
      mesh: the mesh that the state lies on; None for one device.
    """

    step: jax.Array
    tables: dict[str, jax.Array]
    dense: dict[str, Any]
    opt_state: dict[str, Any]
    carry: tuple[Carry, ...]
    key: jax.Array
    skipped: jax.Array
    unigrams: UnigramTable | None
    model_config: ModelConfig = field(metadata={"static": True})
    config: TrainConfig = field(metadata={"static": True})
    mesh: Mesh | None = field(metadata={"static": True})

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, model_config: ModelConfig, train_config: TrainConfig, *, mesh: Mesh | None = None
    ) -> "TrainState":
        """Makes the state of a new model that starts well on a corpus.

        The softmax biases start at the log-probabilities of the words, and embedding and softmax rows at word
        vectors counted from the training text (`train_config.word_vectors`): the two largest gains with a large
        vocabulary.

        Args:
          corpus: as from `load_corpus`.
          model_config: its `vocab_size` is the size of the corpus' vocabulary.
          train_config: how the model is trained.
          mesh: as from `jaxlm.make_mesh`, to train on several devices; no device ever has a whole table.

        Raises:
          InputError: the settings do not fit the corpus.
        """
        vocab_size = len(corpus.vocabulary)
        fits = model_config.vocab_size == vocab_size
        require(fits, "vocab_size", f"{vocab_size}, the vocabulary of the corpus", model_config.vocab_size)
        config, table = check_config(train_config, model_config, corpus.counts)
        vectors = None
        if config.word_vectors:
            vectors = word_vectors(corpus.train, vocab_size, model_config.embedding_size)
            advice = "Machines of different kinds compute different word vectors: use one kind, or no `word_vectors`."
            require_same(vectors.tobytes(), advice)

        def create(rows: Any, table: UnigramTable | None) -> TrainState:
            model = LanguageModel(model_config, *rows, rngs=nnx.Rngs(config.seed), mesh=mesh)
            return cls._of_model(model, config, table)

        rows = corpus.log_unigram, vectors
        if mesh is None:
            return create(rows, table)
        size = padded_rows(vocab_size, mesh)
        rows = jax.tree.map(lambda array: place(pad(array, size), mesh, row_spec(mesh)), rows)
        return _jit_on_mesh(create, mesh, rows, table)

    @classmethod
    def create(
        cls,
        model: LanguageModel,
        config: TrainConfig,
        unigram_counts: ArrayLike | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> "TrainState":
        """Makes the state before the first step. The model's arrays become the state's.

        Args:
          model: do not use it afterwards.
          config: how it is trained; a `num_sampled` larger than the vocabulary samples all of it.
          unigram_counts: `[vocab_size]` integer counts of the words, for the unigram sampler; 0 is taken as 1.
          mesh: onto which the model is copied, if it lies on one device.

        Raises:
          InputError: `unigram_counts` do not fit the model's vocabulary.
        """
        require(mesh is None or model.mesh in (None, mesh), "mesh", "that of the model", mesh)
        config, table = check_config(config, model.config, unigram_counts)
        if mesh is not None and model.mesh is None:
            model = shard_model(model, mesh)
        if model.mesh is None:
            return cls._of_model(model, config, table)
        _, *params = split_params(model)

        def create(params: Any, table: UnigramTable | None) -> TrainState:
            return cls._of_model(merge_params(model.config, model.mesh, *params), config, table)

        return _jit_on_mesh(create, model.mesh, params, table)

    @classmethod
    def _of_model(cls, model: LanguageModel, config: TrainConfig, table: UnigramTable | None) -> "TrainState":
        _, tables, dense = split_params(model)
        opt_state = initial_opt_state(tables, dense, config)
        carry = model.initial_carry(padded_streams(config.batch_size, model.mesh))
        key, skipped = jax.random.key(config.seed), jnp.zeros(2, jnp.int32)
        arrays = (jnp.int32(0), tables, dense, opt_state, carry, key, skipped, table)
        return cls(*arrays, model.config, config, model.mesh)

    @property
    def model(self) -> LanguageModel:
        """The model with the current parameters. It is stale once the state is donated to the next step."""
        return merge_params(self.model_config, self.mesh, self.tables, self.dense)


def state_specs(state: TrainState) -> TrainState:
    """Returns a state with the `PartitionSpec` of each array instead of the array."""
    mesh = state.mesh

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return spec_of(leaf_name(path), jnp.ndim(leaf), mesh)

    return jax.tree_util.tree_map_with_path(spec, state)


def shard_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Copies a state that lies on one device onto a mesh."""
    return dataclasses.replace(shard(state, mesh), mesh=mesh)


def gather_state(state: TrainState) -> TrainState:
    """Copies a state from a mesh of this process' devices onto one device, without the padding of the mesh."""
    sizes = {"rows": state.model_config.vocab_size, "streams": state.config.batch_size}

    def copy(path: tuple, leaf: jax.Array) -> jax.Array:
        size = sizes.get(sharded_dim(leaf_name(path), leaf.ndim))
        return jnp.asarray(np.asarray(leaf) if size is None else np.asarray(leaf)[:size])

    arrays = jax.tree_util.tree_map_with_path(lambda path, leaf: map_data(partial(copy, path), leaf), state)
    return dataclasses.replace(arrays, mesh=None)


def _jit_on_mesh(
    create: Callable[[Any, UnigramTable | None], TrainState], mesh: Mesh, arrays: Any, table: UnigramTable | None
) -> TrainState:
    """Makes a state of arrays on a mesh and of a table that all processes have; each device makes its own part."""
    table = jax.tree.map(np.asarray, table)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(jax.eval_shape(create, arrays, table)))
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(arrays, table)


def check_config(
    config: TrainConfig, model: ModelConfig, unigram_counts: ArrayLike | None
) -> tuple[TrainConfig, UnigramTable | None]:
    """Checks a config and fills it in; returns it, and the table of the unigram sampler if it is used."""
    separate = config.train_embedding or not model.tied
    require(separate, "train_embedding", "True for tied rows, which are softmax rows too", config.train_embedding)
    config = resolve_config(config, model.vocab_size)
    if config.loss == "full" or config.sampler != "unigram":
        return config, None
    counts = np.asarray([] if unigram_counts is None else unigram_counts)
    fits = counts.shape == (model.vocab_size,) and counts.dtype.kind in "iu"
    expected = f"integer counts of shape ({model.vocab_size},)"
    require(fits, "unigram_counts", expected, f"{counts.dtype} {counts.shape}")
    return config, unigram_table(np.maximum(counts, 1))


def resolve_config(config: TrainConfig, vocab_size: int) -> TrainConfig:
    """Returns a config with what depends on the machine or on the vocabulary filled in; says so if that changes it.

    `compute_dtype` "auto" becomes the fastest type; `num_sampled` becomes at most the size of the vocabulary.
    """
    if config.compute_dtype == "auto":
        config = dataclasses.replace(config, compute_dtype=fast_dtype())
    if config.loss == "full" or config.num_sampled <= vocab_size:
        return config
    logger.info("num_sampled is %d instead of %d: the vocabulary has no more words", vocab_size, config.num_sampled)
    return dataclasses.replace(config, num_sampled=vocab_size)


def optimizer(config: TrainConfig, learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """Returns the Optax transformation for table rows and dense parameters alike."""
    if config.optimizer == "adagrad":
        return optax.adagrad(learning_rate, config.initial_accumulator_value)
    return optax.adam(learning_rate) if config.optimizer == "adam" else optax.sgd(learning_rate)


def initial_opt_state(tables: dict[str, jax.Array], dense: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Returns the Optax state of each table by its name, and of the dense parameters, "dense", before any step."""
    tx = optimizer(config, 0.0)
    return {name: tx.init(table) for name, table in tables.items()} | {"dense": tx.init(dense)}
