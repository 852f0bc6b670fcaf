"""Checks that a training run fits into memory before anything is allocated."""

import dataclasses
from collections.abc import Iterator

import jax
import psutil
from flax import nnx

from jaxlm.config import DenseConfig, ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh, leaf_name, mesh_shape, sharded_dim
from jaxlm.training.state import TrainState

WORKSPACE = 600e6  # bytes of temporaries, compiled programs and buffers of the disk; measured at V = 200,000


def state_bytes(model_config: ModelConfig, train_config: TrainConfig, num_shards: int = 1) -> int:
    """Returns the size of a device's part of a `TrainState`: tables, dense parameters and optimizer state."""
    config = dataclasses.replace(train_config, sampler="log_uniform")  # the unigram table needs counts
    state = jax.eval_shape(lambda: TrainState.create(LanguageModel(model_config, rngs=nnx.Rngs(0)), config))
    parts = {"tables": state.tables, "dense": state.dense, "opt_state": state.opt_state}
    sizes = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf.size * leaf.dtype.itemsize // (num_shards if sharded_dim(leaf_name(path), leaf.ndim) == "rows" else 1)
        ),
        parts,
    )
    return sum(jax.tree.leaves(sizes))


def available_bytes() -> int:
    """Returns the memory that is free for training on a device of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def require_memory(model_config: ModelConfig, train_config: TrainConfig, mesh: Mesh | None = None) -> None:
    """Raises `InputError`, with settings that would fit, if a training run needs more memory than there is."""
    available, shards = available_bytes(), mesh_shape(mesh)[1]
    # the devices of a processor share its memory
    sharing = len(mesh.local_devices) if mesh is not None and jax.default_backend() == "cpu" else 1

    def total(part: int) -> float:
        return sharing * part + WORKSPACE

    needed = total(state_bytes(model_config, train_config, shards))
    if needed <= available:
        return
    fitting = [text for text, size in _alternatives(model_config, train_config, shards) if total(size) <= available]
    advice = f"These would fit: {'; '.join(fitting)}." if fitting else "Use a smaller vocabulary or a smaller model."
    raise InputError(
        f"Training this model needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free."
        f" {advice}"
    )


def _alternatives(model: ModelConfig, train: TrainConfig, shards: int) -> Iterator[tuple[str, int]]:
    """Yields smaller settings, in words, and their sizes."""
    for optimizer in ("adagrad", "sgd"):
        if train.optimizer == "adam":
            smaller = dataclasses.replace(train, optimizer=optimizer)
            yield f"`optimizer` {optimizer}", state_bytes(model, smaller, shards)
    for width in (512, 256, 128):
        if width < model.softmax_size and not model.tied and not model.dense:
            narrow = dataclasses.replace(model, dense=(DenseConfig(width, use_bias=False),), dropout_rates=())
            yield f"`projection_size` {width}", state_bytes(narrow, train, shards)
    for size in (model.vocab_size // 2, model.vocab_size // 4, model.vocab_size // 8):
        fewer = dataclasses.replace(model, vocab_size=max(1, size))
        yield f"a vocabulary of {size:,} words", state_bytes(fewer, train, shards)
