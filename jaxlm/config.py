"""What a run is made of: two frozen dataclasses, checked when made, JSON in and out."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

Optimizer = Literal["adam", "adagrad", "sgd"]
Sampler = Literal["log_uniform", "uniform", "unigram"]
Loss = Literal["sampled_softmax", "nce", "full"]
ComputeDtype = Literal["float32", "bfloat16"]


class InputError(Exception):
    """What the user gave cannot be used; the message says why and what to do instead.

    No ValueError, since the command line's parser would catch that and put it in words of its own.
    """


def require(condition: bool, argument: str, expected: str, received: object) -> None:
    """Raises `InputError` in one form for all arguments unless `condition` holds."""
    if not condition:
        raise InputError(f"Invalid `{argument}`: expected {expected}. Received: {received!r}.")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an Embedding -> LSTM stack -> softmax language model.

    Args:
      vocab_size: number of classes V; ids are sorted by decreasing frequency.
      embedding_size: width of an embedding row.
      hidden_size: width of each LSTM layer.
      num_layers: number of LSTM layers.
      projection_size: width of a linear bottleneck between the LSTM and the softmax rows (Sak et al. 2014,
        https://arxiv.org/abs/1402.1128); 0 is none.
      tied: whether the softmax rows are the embedding rows (Press and Wolf 2017,
        https://arxiv.org/abs/1608.05859); their widths must be equal then.
      dropout: rate on the non-recurrent connections (Zaremba et al. 2014,
        https://arxiv.org/abs/1409.2329, section 3); active in training only.

    Raises:
      InputError: a value is out of its range.
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
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_layers"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, "an integer of at least 1", value)
        require(self.projection_size >= 0, "projection_size", "at least 0", self.projection_size)
        fits = not self.tied or self.embedding_size == self.softmax_size
        expected = f"an embedding_size of {self.softmax_size}, the width of the softmax rows"
        require(fits, "tied", expected, self.embedding_size)
        require(0.0 <= self.dropout < 1.0, "dropout", "a rate in [0, 1)", self.dropout)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
      batch_size: number of contiguous streams of text.
      sequence_length: time steps of truncated back-propagation.
      num_sampled: classes sampled per step, shared by the batch; 0 is the same as `loss` "full".
      sampler: the law they are drawn by: "log_uniform" suits words sorted by frequency (Zipf's law),
        "unigram" is by the counts themselves, "uniform" is for classes that are about as frequent.
      loss: "sampled_softmax", "nce" (noise-contrastive estimation), or "full", the exact
        softmax (slow at a large vocabulary: the baseline to compare with).
      word_vectors: whether embedding and softmax rows start at vectors counted from the training text
        (words with the same neighbours lie close together), and not at random.
      compute_dtype: of the factors of training's matrix products; "bfloat16" is for accelerators with units for
        it, a CPU takes float32 all the same. Sums, states and parameters are float32 always; evaluation is as ever.
      optimizer: of the LSTM (dense) and of the rows (sparse; adam is then lazy).
      learning_rate: its highest value, held until the decay begins; 0.003 suits adam, 0.03 adagrad.
      warmup_steps: steps over which the learning rate rises linearly from 0.
      decay_fraction: last part of the training over which it falls linearly to 0.
      clip_norm: bound on the global norm of the gradients; 0 does not clip.
      initial_accumulator_value: of Adagrad's sum of squares.
      steps: length of the training in steps, or 0.
      epochs: length of the training in passes over the training text, or 0.
      minutes: length of the training in minutes, evaluation not counted, or 0.
      eval_every: steps between evaluations; each also writes a checkpoint.
      eval_tokens: words of the validation text in an evaluation during training,
        spread evenly over it; 0 is all of it.
      seed: of initialisation, sampling and dropout.

    Raises:
      InputError: a value is out of its range.
    """

    batch_size: int = 16
    sequence_length: int = 35
    num_sampled: int = 1000
    sampler: Sampler = "log_uniform"
    loss: Loss = "sampled_softmax"
    word_vectors: bool = True
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = "adam"
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    decay_fraction: float = 0.5
    clip_norm: float = 10.0
    initial_accumulator_value: float = 1e-6
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    eval_every: int = 1000
    eval_tokens: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "eval_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("num_sampled", "warmup_steps", "clip_norm", "steps", "epochs", "minutes", "eval_tokens", "seed"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.learning_rate > 0, "learning_rate", "more than 0", self.learning_rate)
        require(
            self.initial_accumulator_value >= 0,
            "initial_accumulator_value",
            "at least 0",
            self.initial_accumulator_value,
        )
        require(0 <= self.decay_fraction <= 1, "decay_fraction", "a part in [0, 1]", self.decay_fraction)
        choices_of = {"optimizer": Optimizer, "sampler": Sampler, "loss": Loss, "compute_dtype": ComputeDtype}
        for name, choices in choices_of.items():
            value = getattr(self, name)
            require(value in get_args(choices), name, f"one of {get_args(choices)}", value)
        lengths = {name: getattr(self, name) for name in ("steps", "epochs", "minutes")}
        require(sum(value > 0 for value in lengths.values()) <= 1, "length", "one of steps, epochs, minutes", lengths)

    @property
    def exact(self) -> bool:
        """Whether the training loss is the exact full softmax."""
        return self.loss == "full" or self.num_sampled == 0


Config = TypeVar("Config", ModelConfig, TrainConfig)


def from_dict(cls: type[Config], values: dict[str, Any], source: str) -> Config:
    """Builds a config from a JSON object, naming `source` and the key when one does not fit.

    Raises:
      InputError: a key is unknown or missing, or a value has the wrong type or range.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise InputError(f"{source}: unknown keys {unknown}, missing keys {missing} in the {cls.__name__}.")
    try:
        return cls(**values)
    except (TypeError, InputError) as error:
        raise InputError(f"{source}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      InputError: the file does not exist or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object. Received: {type(value).__name__}.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file beside `path` and renames it, so that no reader sees half of it."""
    partial = partial_path(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def partial_path(path: Path) -> Path:
    """Returns where a file or directory is made before it takes its name."""
    path = path.resolve()
    return path.with_name(path.name + ".partial")
