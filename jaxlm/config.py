"""Settings: the shape of the model, what a training step does, and the schedule of a run. Checked when made."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlm.errors import require

LENGTHS = ("steps", "epochs", "minutes")  # fields of ScheduleConfig, of which a run has one

Optimizer = Literal["adam", "adagrad", "sgd"]
Sampler = Literal["log_uniform", "uniform", "unigram"]
Loss = Literal["sampled_softmax", "nce", "full"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an Embedding -> LSTM stack -> softmax language model.

    Args:
      vocab_size: number of words V; ids are sorted by decreasing frequency.
      embedding_size: width of an embedding row.
      hidden_size: width of each LSTM layer.
      num_layers: number of LSTM layers.
      projection_size: width of a linear bottleneck between the LSTM and the softmax rows (Sak et al. 2014,
        https://arxiv.org/abs/1402.1128); 0 for none.
      tied: whether the embedding rows also serve as softmax rows (Press and Wolf 2017,
        https://arxiv.org/abs/1608.05859); both must have the same width.
      dropout: rate on the non-recurrent connections during training (Zaremba et al. 2014,
        https://arxiv.org/abs/1409.2329, section 3).

    Raises:
      InputError: a value is out of range.
    """

    vocab_size: int
    embedding_size: int = 256
    hidden_size: int = 1024
    num_layers: int = 1
    projection_size: int = 0
    tied: bool = False
    dropout: float = 0.0

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.projection_size or self.hidden_size

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 1, "vocab_size", "embedding_size", "hidden_size", "num_layers")
        _require_at_least(self, 0, "projection_size")
        fits = not self.tied or self.embedding_size == self.softmax_size
        expected = f"an `embedding_size` of {self.softmax_size}, the width of the softmax rows"
        require(fits, "tied", expected, self.embedding_size)
        require(0.0 <= self.dropout < 1.0, "dropout", "a rate in [0, 1)", self.dropout)


@dataclass(frozen=True)
class TrainConfig:
    """What a training step does. Another value compiles the step again.

    Args:
      batch_size: number of contiguous streams of text.
      sequence_length: time steps of truncated backpropagation.
      loss: "sampled_softmax", "nce" (noise-contrastive estimation), or "full" for the exact softmax, the slow
        baseline to compare with.
      num_sampled: classes sampled per step and shared by the batch; not used by loss "full".
      sampler: distribution they are drawn from: "log_uniform" suits words sorted by frequency (Zipf's law),
        "unigram" follows the word counts, "uniform" suits classes of similar frequency.
      optimizer: for the LSTM (dense) and the table rows (sparse, so that adam is lazy).
      initial_accumulator_value: where Adagrad's sums of squares start.
      clip_norm: limit on the global norm of the gradients; 0 for no clipping.
      clip_each: whether `clip_norm` limits the norm of each parameter's gradient by itself, as Keras' `clipnorm`
        does, and not that of all together.
      train_embedding: whether the embedding is trained; False keeps it as it is.
      compute_dtype: data type of the factors of training's matrix products: "auto" is bfloat16 on GPUs, TPUs and
        processors with instructions for it (AMX, AVX512_BF16), and float32 elsewhere. A run keeps the type it began
        with. Sums, states and parameters stay float32; evaluation is unaffected.
      word_vectors: whether embedding and softmax rows start at vectors counted from the training text, where
        words with the same neighbors lie close together, rather than at random.
      seed: random seed for initialization, sampling and dropout.

    Raises:
      InputError: a value is out of range.
    """

    batch_size: int = 16
    sequence_length: int = 35
    loss: Loss = "sampled_softmax"
    num_sampled: int = 1000
    sampler: Sampler = "log_uniform"
    optimizer: Optimizer = "adam"
    initial_accumulator_value: float = 1e-6
    clip_norm: float = 10.0
    clip_each: bool = False
    train_embedding: bool = True
    compute_dtype: ComputeDtype = "auto"
    word_vectors: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 1, "batch_size", "sequence_length", "num_sampled")
        _require_at_least(self, 0, "initial_accumulator_value", "clip_norm", "seed")


@dataclass(frozen=True)
class ScheduleConfig:
    """The schedule of a run: its learning rate, its length and its evaluations.

    Args:
      learning_rate: the highest value, held until the decay begins; 0.003 suits adam, 0.03 adagrad.
      warmup_steps: steps over which the learning rate rises linearly from 0.
      decay_fraction: last fraction of the run, over which the learning rate falls linearly to 0.
      steps: length of the run in steps; 0 to leave it to the others.
      epochs: length in passes over the training text; one pass if `steps`, `epochs` and `minutes` are all 0.
      minutes: length in minutes, not counting evaluation.
      eval_every: steps between evaluations. Each one also writes a checkpoint.
      eval_tokens: words of the validation text per evaluation, spread evenly over it; 0 for all of it.
      save_minutes: minutes between checkpoints besides those of evaluations; 0 for none.
      save_steps: steps between checkpoints besides those of evaluations; 0 for none.

    Raises:
      InputError: a value is out of range.
    """

    learning_rate: float = 3e-3
    warmup_steps: int = 20
    decay_fraction: float = 0.5
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    eval_every: int = 1000
    eval_tokens: int = 20_000
    save_minutes: float = 5.0
    save_steps: int = 0

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 1, "eval_every")
        _require_at_least(
            self, 0, "warmup_steps", "steps", "eval_tokens", "epochs", "minutes", "save_minutes", "save_steps"
        )
        require(self.learning_rate > 0, "learning_rate", "a number above 0", self.learning_rate)
        require(0 <= self.decay_fraction <= 1, "decay_fraction", "a fraction in [0, 1]", self.decay_fraction)
        lengths = {name: getattr(self, name) for name in LENGTHS}
        if sum(value > 0 for value in lengths.values()) > 1:
            require(False, "steps", "only one of `steps`, `epochs` and `minutes`", lengths)


EXPECTED = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}


def _require_types(config: Any) -> None:
    """Checks each field against its type; a float may be given as an integer."""
    types = get_type_hints(type(config))
    for field in fields(config):
        kind, value = types[field.name], getattr(config, field.name)
        if get_origin(kind) is Literal:
            require(value in get_args(kind), field.name, f"one of {get_args(kind)}", value)
            continue
        right = isinstance(value, int | float if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        right = right and (kind is not float or math.isfinite(value))
        require(right, field.name, EXPECTED[kind], value)


def _require_at_least(config: Any, lowest: int, *names: str) -> None:
    for name in names:
        require(getattr(config, name) >= lowest, name, f"at least {lowest}", getattr(config, name))
