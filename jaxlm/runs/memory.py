"""Checks that a training run fits into memory before anything is allocated."""

import dataclasses
from collections.abc import Iterator

import jax
import psutil
from flax import nnx

from jaxlm.config import DenseConfig, ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.losses.exact import KEPT_BYTES, exponential_bytes
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh, leaf_name, mesh_shape, sharded_dim
from jaxlm.training.state import TrainState

WORKSPACE = 600_000_000  # bytes of temporaries, compiled programs and buffers of the disk; measured at V = 200,000


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


def full_loss_bytes(model_config: ModelConfig, train_config: TrainConfig, mesh: tuple[int, int] = (1, 1)) -> int:
    """Returns the size of a device's gradient of the softmax and of the exponentials that loss "full" keeps."""
    if train_config.loss != "full":
        return 0
    data, vocab = mesh
    rows = -(-model_config.vocab_size // vocab)
    words = -(-train_config.batch_size // data) * train_config.sequence_length
    exponentials = exponential_bytes(rows, words, train_config.compute_dtype)
    return 4 * rows * model_config.softmax_size + (exponentials if exponentials <= KEPT_BYTES else 0)


def available_bytes() -> int:
    """Returns the memory that is free for training on a device of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def require_memory(model_config: ModelConfig, train_config: TrainConfig, mesh: Mesh | None = None) -> None:
    """Raises `InputError`, with settings that would fit, if a training run needs more memory than there is."""
    available, shape = available_bytes(), mesh_shape(mesh)
    # the devices of a processor share its memory
    sharing = len(mesh.local_devices) if mesh is not None and jax.default_backend() == "cpu" else 1

    def total(model: ModelConfig, train: TrainConfig) -> int:
        return sharing * (state_bytes(model, train, shape[1]) + full_loss_bytes(model, train, shape)) + WORKSPACE

    needed = total(model_config, train_config)
    if needed <= available:
        return
    alternatives = _alternatives(model_config, train_config)
    fitting = [text for text, model, train in alternatives if total(model, train) <= available]
    advice = f"These would fit: {'; '.join(fitting)}." if fitting else "Use a smaller vocabulary or a smaller model."
    raise InputError(
        f"Training this model needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free."
        f" {advice}"
    )


def _alternatives(model: ModelConfig, train: TrainConfig) -> Iterator[tuple[str, ModelConfig, TrainConfig]]:
    """Yields smaller settings, in words, and their configs."""
    for optimizer in ("adagrad", "sgd"):
        if train.optimizer == "adam":
            yield f"`optimizer` {optimizer}", model, dataclasses.replace(train, optimizer=optimizer)
    for width in (512, 256, 128):
        if width < model.softmax_size and not model.tied and not model.dense:
            bottleneck = (DenseConfig(width, use_bias=False),)
            narrow = dataclasses.replace(model, dense=bottleneck, dropout_rates=())
            yield f"`projection_size` {width}", narrow, train
    for size in (model.vocab_size // 2, model.vocab_size // 4, model.vocab_size // 8):
        fewer = dataclasses.replace(model, vocab_size=max(1, size))
        yield f"a vocabulary of {size:,} words", fewer, train
