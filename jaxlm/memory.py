"""Whether a training run fits into memory, before anything is allocated."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel
from jaxlm.train_state import TrainState

WORKSPACE = 600e6  # bytes of temporaries, compiled programs and buffers of the disk; measured at V = 200,000


def state_bytes(model_config: ModelConfig, train_config: TrainConfig) -> int:
    """Returns the size of a `TrainState`: tables, dense parameters and optimizer state."""
    config = dataclasses.replace(train_config, sampler="log_uniform")  # the unigram table needs counts
    state = jax.eval_shape(lambda: TrainState.create(LanguageModel(model_config, rngs=nnx.Rngs(0)), config))
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.tables, state.dense, state.opt_state))
    )


def available_bytes() -> int | None:
    """Returns the memory that is free for training on the first device, or None if that is unknown."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = [line for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def require_memory(model_config: ModelConfig, train_config: TrainConfig) -> None:
    """Raises `InputError`, with settings that would fit, if a training run needs more memory than there is."""
    available = available_bytes()
    needed = state_bytes(model_config, train_config) + WORKSPACE
    if available is None or needed <= available:
        return
    fitting = [text for text, size in _alternatives(model_config, train_config) if size + WORKSPACE <= available]
    advice = f"These would fit: {'; '.join(fitting)}." if fitting else "Use a smaller vocabulary or a smaller model."
    raise InputError(
        f"Training this model needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free."
        f" {advice}"
    )


def _alternatives(model: ModelConfig, train: TrainConfig) -> Iterator[tuple[str, int]]:
    """Yields smaller settings, in words, and their sizes."""
    for optimizer in ("adagrad", "sgd"):
        if train.optimizer == "adam":
            smaller = dataclasses.replace(train, optimizer=optimizer)
            yield f"`optimizer` {optimizer}", state_bytes(model, smaller)
    for width in (512, 256, 128):
        if width < model.softmax_size and not model.tied and not model.dense:
            narrow = dataclasses.replace(model, projection_size=width)
            yield f"`projection_size` {width}", state_bytes(narrow, train)
    for size in (model.vocab_size // 2, model.vocab_size // 4, model.vocab_size // 8):
        yield f"a vocabulary of {size:,} words", state_bytes(dataclasses.replace(model, vocab_size=max(1, size)), train)
