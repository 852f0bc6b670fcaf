"""`TrainState`: all that a training step reads and writes."""

import dataclasses
import logging
from dataclasses import dataclass, field
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
from jaxlm.cooccurrence import word_vectors
from jaxlm.corpus import Corpus
from jaxlm.errors import require
from jaxlm.lstm import Carry
from jaxlm.matmul import fast_dtype
from jaxlm.mesh import Mesh, leaf_name, pad, padded_rows, padded_streams, place, row_spec, spec_of
from jaxlm.model import LanguageModel, shard_model, split_params

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
      graphdef: structure of the `LanguageModel`.
      config: the `TrainConfig`.
    """

    step: jax.Array
    tables: dict[str, jax.Array]
    dense: dict[str, Any]
    opt_state: dict[str, Any]
    carry: tuple[Carry, ...]
    key: jax.Array
    skipped: jax.Array
    unigrams: UnigramTable | None
    graphdef: nnx.GraphDef = field(metadata={"static": True})
    config: TrainConfig = field(metadata={"static": True})

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
        vectors = None
        if train_config.word_vectors:
            vectors = word_vectors(corpus.train, vocab_size, model_config.embedding_size)

        def create(log_unigram: Any, vectors: Any) -> TrainState:
            model = LanguageModel(model_config, log_unigram, vectors, rngs=nnx.Rngs(train_config.seed), mesh=mesh)
            return cls.create(model, train_config, corpus.counts)

        arrays = corpus.log_unigram, vectors
        if mesh is None:
            return create(*arrays)
        arrays = jax.tree.map(
            lambda array: place(pad(array, padded_rows(vocab_size, mesh)), mesh, row_spec(mesh)), arrays
        )
        shardings = _on_mesh(state_specs(jax.eval_shape(create, *arrays)), mesh)
        return jax.jit(create, out_shardings=shardings)(*arrays)

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
        vocab_size, table = model.config.vocab_size, None
        separate = config.train_embedding or not model.config.tied
        require(separate, "train_embedding", "True for tied rows, which are softmax rows too", config.train_embedding)
        config = resolved(config, vocab_size)
        if config.loss != "full" and config.sampler == "unigram":
            counts = np.asarray([] if unigram_counts is None else unigram_counts)
            expected = f"integer counts of shape ({vocab_size},)"
            fits = counts.shape == (vocab_size,) and counts.dtype.kind in "iu"
            require(fits, "unigram_counts", expected, f"{counts.dtype} {counts.shape}")
            table = unigram_table(np.maximum(counts, 1))
        if mesh is not None and model.mesh is None:
            model = shard_model(model, mesh)
        graphdef, tables, dense = split_params(model)

        def fresh(tables: dict[str, jax.Array], dense: dict[str, Any], unigrams: UnigramTable | None) -> TrainState:
            opt_state = initial_opt_state(tables, dense, config)
            carry = model.initial_carry(padded_streams(config.batch_size, model.mesh))
            key, skipped = jax.random.key(config.seed), jnp.zeros(2, jnp.int32)
            return cls(jnp.int32(0), tables, dense, opt_state, carry, key, skipped, unigrams, graphdef, config)

        if model.mesh is None:
            return fresh(tables, dense, table)
        table = jax.tree.map(np.asarray, table)  # the same in all processes
        shardings = _on_mesh(state_specs(jax.eval_shape(fresh, tables, dense, table)), model.mesh)
        return jax.jit(fresh, out_shardings=shardings)(tables, dense, table)

    @property
    def model(self) -> LanguageModel:
        """The model with the current parameters. It is stale once the state is donated to the next step."""
        return nnx.merge(self.graphdef, self.tables, self.dense)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the state lies on; None for one device."""
        return self.model.mesh


def state_specs(state: TrainState) -> TrainState:
    """Returns a state with the `PartitionSpec` of each array instead of the array."""
    mesh = state.mesh

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return spec_of(leaf_name(path), jnp.ndim(leaf), mesh)

    return jax.tree_util.tree_map_with_path(spec, state)


def _on_mesh(specs: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def resolved(config: TrainConfig, vocab_size: int) -> TrainConfig:
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
