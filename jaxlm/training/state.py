"""`TrainState`: all that a training step reads and writes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from numpy.typing import ArrayLike

from jaxlm.candidate_sampling.distributions import UnigramTable
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.corpus import Corpus
from jaxlm.data.word_vectors import word_vectors
from jaxlm.errors import require
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.params import merge_params, shard_model, split_params
from jaxlm.parallel.mesh import Mesh, pad, padded_rows, padded_streams, place, row_spec, tree_specs
from jaxlm.parallel.processes import require_same
from jaxlm.training.body import Body, LanguageModelBody, split_tree
from jaxlm.training.optimizer import Transformation, averaged, initial_opt_state
from jaxlm.training.settings import ClassOrder, check_config, check_frozen, require_vocab_size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a training step reads and writes. A step donates it; use only the state it returns.

    On a mesh (`jaxlm.make_mesh`), tables and their optimizer states are sharded by rows along `vocab`, and padded with
    rows of zeros to equal shards; the carry is sharded by streams, along both axes.

    Attributes:
      step: int32 scalar, steps done.
      tables: softmax rows `weights` `[V, D]` and `biases` `[V]`, and those that are looked up before the body, such as
        `embedding` `[V, E]`; all are updated by rows.
      dense: the trained parameters of the body.
      opt_state: the Optax state of each table by its name, and of the dense parameters, "dense".
      other: arrays of the body that no gradient updates.
      carry: of the body, such as the LSTM state at the end of the last batch.
      key: `jax.random.key`; step n draws from `fold_in(key, n)`.
      skipped: int32 `[2]`, steps skipped because of a loss or gradient that was not finite: in all, and in a row.
      unigrams: the table of the unigram sampler, or None.
      order: the ids by frequency, for a sampler that expects them in this order; None if they are.
      body: the `Body`.
      lookups: the table that each array of `Batch.inputs` is looked up in.
      frozen: tables without an update.
      vocab_size: number of classes.
      config: the `TrainConfig`.
      tx: the optimizer if it is not that of the config.
      mesh: the mesh of the state; None for one device.
    """

    step: jax.Array
    tables: dict[str, jax.Array]
    dense: Any
    opt_state: dict[str, Any]
    other: Any
    carry: Any
    key: jax.Array
    skipped: jax.Array
    unigrams: UnigramTable | None
    order: ClassOrder | None
    body: Body = field(metadata={"static": True})
    lookups: tuple[str, ...] = field(metadata={"static": True})
    frozen: tuple[str, ...] = field(metadata={"static": True})
    vocab_size: int = field(metadata={"static": True})
    config: TrainConfig = field(metadata={"static": True})
    tx: Transformation | None = field(metadata={"static": True})
    mesh: Mesh | None = field(metadata={"static": True})

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        model_config: ModelConfig,
        train_config: TrainConfig,
        *,
        use_word_vectors: bool = True,
        mesh: Mesh | None = None,
    ) -> "TrainState":
        """Makes the state of a new model that starts well on a corpus.

        The softmax biases start at the log-probabilities of the words, and embedding and softmax rows at word
        vectors counted from the training text: the two largest gains with a large vocabulary.

        Args:
          corpus: as from `load_corpus`.
          model_config: its `vocab_size` is the size of the corpus' vocabulary.
          train_config: how the model is trained; its `seed` is that of the initial values, too.
          use_word_vectors: whether rows start at `jaxlm.word_vectors` of the training text; otherwise at random.
          mesh: as from `jaxlm.make_mesh`, to train on several devices; no device ever has a whole table.

        Raises:
          InputError: the settings do not fit the corpus.
        """
        vocab_size = len(corpus.vocabulary)
        require_vocab_size(model_config, vocab_size)
        config, table = check_config(train_config, vocab_size, corpus.counts)
        vectors = word_vectors(corpus.train, vocab_size, model_config.embedding_size) if use_word_vectors else None
        if vectors is not None:
            advice = "Machines of different kinds compute different word vectors: use one kind, or none."
            require_same(vectors.tobytes(), advice)

        def create(rows: Any, table: UnigramTable | None) -> TrainState:
            model = LanguageModel(model_config, *rows, rngs=nnx.Rngs(config.seed), mesh=mesh)
            return cls._of_model(model, config, table)

        rows = corpus.log_unigram, vectors
        if mesh is None:
            return jax.jit(create, donate_argnums=0)(jax.device_put(rows), table)
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
        tx: Transformation | None = None,
        frozen: Collection[str] = (),
        order: ClassOrder | None = None,
        mesh: Mesh | None = None,
    ) -> "TrainState":
        """Makes the state before the first step. The model's arrays become the state's.

        Args:
          model: do not use it afterwards.
          config: how it is trained; a `num_sampled` larger than the vocabulary samples all of it.
          unigram_counts: `[vocab_size]` integer counts of the words, for the unigram sampler; 0 is taken as 1.
          tx: an element-wise Optax transformation in place of the config's optimizer, such as
            `optax.adamw(schedule)`; or a hashable function that makes one of the learning rate of a step.
          frozen: parameters that stay as they are, such as "embedding" or "lstms/0/kernel".
          order: of ids that are not sorted by frequency, as from `class_order`.
          mesh: onto which the model is copied, if it is on one device.

        Raises:
          InputError: `unigram_counts`, `frozen` or `order` do not fit the model.
        """
        require(mesh is None or model.mesh in (None, mesh), "mesh", "that of the model", mesh)
        config, table = check_config(config, model.config.vocab_size, unigram_counts, order)
        model = shard_model(model, mesh) if mesh is not None and model.mesh is None else model
        if model.mesh is None:
            return cls._of_model(model, config, table, tx, frozen, order)

        def create(params: Any, table: UnigramTable | None) -> TrainState:
            merged = merge_params(model.config, model.mesh, *params)
            return cls._of_model(merged, config, table, tx, frozen, order)

        return _jit_on_mesh(create, model.mesh, split_params(model)[1:], table)

    @classmethod
    def for_body(
        cls,
        body: Body,
        tables: dict[str, jax.Array],
        dense: Any,
        config: TrainConfig,
        unigram_counts: ArrayLike | None = None,
        *,
        lookups: Sequence[str] = ("embedding",),
        other: Any = (),
        carry: Any = (),
        tx: Transformation | None = None,
        frozen: Collection[str] = (),
        order: ClassOrder | None = None,
        opt_state: dict[str, Any] | None = None,
    ) -> "TrainState":
        """Makes the state before the first step of any model, on one device. The arrays become the state's.

        Args:
          body: a hashable function (dense, other, rows, features, carry, key) -> `BodyOutputs`.
          tables: `weights` `[V, D]` and `biases` `[V]` of the softmax, and those of the lookups.
          dense: the body's trained parameters.
          config, unigram_counts, tx, order: as in `create`.
          lookups: the table for each array of ids in `Batch.inputs`; a table may occur more than once.
          other: arrays of the body that no gradient updates, such as moving averages.
          carry: what the body passes from one batch to the next.
          frozen: tables that stay as they are.
          opt_state: the Optax state of each trained table and of "dense"; by default, that before any step.

        Raises:
          InputError: a table is missing, or `unigram_counts`, `frozen` or `order` do not fit.
        """
        missing = sorted({"weights", "biases", *lookups} - tables.keys())
        require(not missing, "tables", "`weights`, `biases` and those of `lookups`", f"none named {missing}")
        vocab_size = tables["weights"].shape[0]
        config, unigrams = check_config(config, vocab_size, unigram_counts, order)
        frozen = check_frozen(frozen, tables)
        static = {"body": body, "lookups": tuple(lookups), "frozen": frozen, "vocab_size": vocab_size}
        arrays = {"other": other, "carry": carry, "unigrams": unigrams, "order": order}
        return cls._fresh(config, tables, dense, opt_state, tx=tx, mesh=None, **arrays, **static)

    @classmethod
    def _of_model(
        cls,
        model: LanguageModel,
        config: TrainConfig,
        table: UnigramTable | None,
        tx: Transformation | None = None,
        frozen: Collection[str] = (),
        order: ClassOrder | None = None,
    ) -> "TrainState":
        fits = config.train_embedding or not model.config.tied
        require(fits, "train_embedding", "True for tied rows, which are softmax rows too", config.train_embedding)
        _, tables, dense = split_params(model)
        frozen = check_frozen(frozen, tables | dense)
        dense, other = split_tree(dense, frozenset(frozen))
        kept = {"embedding": config.train_embedding, "biases": model.config.softmax_bias}
        frozen = tuple(name for name in sorted(tables) if name in frozen or not kept.get(name, True))
        carry = model.initial_carry(padded_streams(config.batch_size, model.mesh))
        body = LanguageModelBody(model.config, model.mesh, config)
        lookups = ("weights" if model.config.tied else "embedding",)
        static = {"body": body, "lookups": lookups, "frozen": frozen, "vocab_size": model.config.vocab_size}
        arrays = {"other": other, "carry": carry, "unigrams": table, "order": order}
        return cls._fresh(config, tables, dense, tx=tx, mesh=model.mesh, **arrays, **static)

    @classmethod
    def _fresh(cls, config: TrainConfig, tables: Any, dense: Any, opt_state: Any = None, **fields: Any) -> "TrainState":
        opt_state = opt_state or initial_opt_state(tables, dense, config, fields["tx"])
        fields |= {"step": jnp.int32(0), "skipped": jnp.zeros(2, jnp.int32), "key": jax.random.key(config.seed)}
        return cls(tables=tables, dense=dense, opt_state=opt_state, config=config, **fields)

    @property
    def model(self) -> LanguageModel:
        """The `LanguageModel` with the current parameters. It is stale once the state is donated to the next step."""
        return cast(LanguageModelBody, self.body).model(self.tables, self.dense, self.other)

    @property
    def averaged_model(self) -> LanguageModel:
        """The `LanguageModel` with the averages of the parameters; the current ones if there are none."""
        tables, dense = averaged(self.tables, self.dense, self.opt_state, self.config)
        return cast(LanguageModelBody, self.body).model(tables, dense, self.other)


def _jit_on_mesh(
    create: Callable[[Any, UnigramTable | None], TrainState], mesh: Mesh, arrays: Any, table: UnigramTable | None
) -> TrainState:
    """Makes a state of arrays on a mesh and of a table that all processes have; each device makes its own part."""
    table = jax.tree.map(np.asarray, table)
    specs = tree_specs(jax.eval_shape(create, arrays, table), mesh)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(arrays, table)
