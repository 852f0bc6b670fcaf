"""Settings: the shape of the model, what a training step does, and the schedule of a run. Checked when made."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from jaxlm.errors import require

Optimizer = Literal["adam", "adagrad", "sgd"]
Sampler = Literal["log_uniform", "uniform", "unigram"]
Loss = Literal["sampled_softmax", "nce", "full"]
ComputeDtype = Literal["float32", "bfloat16"]


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
        _require_integers(self, 1, "vocab_size", "embedding_size", "hidden_size", "num_layers")
        _require_integers(self, 0, "projection_size")
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
      compute_dtype: data type of the factors of training's matrix products. "bfloat16" is for accelerators; CPUs
        still compute in float32. Sums, states and parameters stay float32; evaluation is unaffected.
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
    compute_dtype: ComputeDtype = "float32"
    word_vectors: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require_integers(self, 1, "batch_size", "sequence_length", "num_sampled")
        _require_integers(self, 0, "seed")
        _require_at_least_0(self, "initial_accumulator_value", "clip_norm")
        choices_of = {"optimizer": Optimizer, "sampler": Sampler, "loss": Loss, "compute_dtype": ComputeDtype}
        for name, choices in choices_of.items():
            value = getattr(self, name)
            require(value in get_args(choices), name, f"one of {get_args(choices)}", value)


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

    def __post_init__(self) -> None:
        _require_integers(self, 1, "eval_every")
        _require_integers(self, 0, "warmup_steps", "steps", "eval_tokens")
        _require_at_least_0(self, "epochs", "minutes")
        rate = self.learning_rate
        require(0 < rate < math.inf, "learning_rate", "a number above 0", rate)
        require(0 <= self.decay_fraction <= 1, "decay_fraction", "a fraction in [0, 1]", self.decay_fraction)
        lengths = {name: getattr(self, name) for name in ("steps", "epochs", "minutes")}
        if sum(value > 0 for value in lengths.values()) > 1:
            require(False, "steps", "only one of `steps`, `epochs` and `minutes`", lengths)


def _require_integers(config: object, lowest: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= lowest, name, f"an integer of at least {lowest}", value)


def _require_at_least_0(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value < math.inf, name, "a finite number of at least 0", value)
