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
Activation = Literal["linear", "relu", "tanh"]


@dataclass(frozen=True)
class LSTMConfig:
    """One LSTM layer.

    Args:
      size: its width.
      use_bias: whether it has a bias.

    Raises:
      InputError: a value is out of range.
    """

    size: int
    use_bias: bool = True

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 1, "size")


@dataclass(frozen=True)
class DenseConfig:
    """One Dense layer between the LSTM stack and the softmax.

    Args:
      size: its width.
      activation: "linear", "relu" or "tanh".
      use_bias: whether it has a bias.

    Raises:
      InputError: a value is out of range.
    """

    size: int
    activation: Activation = "linear"
    use_bias: bool = True

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 1, "size")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an Embedding -> LSTM stack -> (Dense layers) -> softmax language model.

    `hidden_size` with `num_layers`, `projection_size` and `dropout` are the short way to describe a chain of
    layers; `lstms`, `dense` and `dropout_rates` describe any. `lstm_layers`, `dense_layers` and
    `dropout_after` are the chain in either case.

    Args:
      vocab_size: number of words V; ids are sorted by decreasing frequency.
      embedding_size: width of an embedding row.
      hidden_size: width of each LSTM layer; with `lstms`, that of the last.
      num_layers: number of LSTM layers.
      projection_size: width of a linear bottleneck between the LSTM and the softmax rows (Sak et al. 2014,
        https://arxiv.org/abs/1402.1128); 0 for none.
      tied: whether the embedding rows also serve as softmax rows (Press and Wolf 2017,
        https://arxiv.org/abs/1608.05859); both must have the same width.
      dropout: rate on the non-recurrent connections during training: after the embedding and after each LSTM
        layer (Zaremba et al. 2014, https://arxiv.org/abs/1409.2329, section 3).
      lstms: the LSTM layers, if they differ in width or have no bias.
      dense: the Dense layers between the LSTM stack and the softmax, other than `projection_size`.
      dropout_rates: the rate after the embedding, after each LSTM layer and after each Dense layer, if they differ.
      softmax_bias: whether the softmax has biases. If not, they are zeros that training leaves alone.

    Raises:
      InputError: a value is out of range, or the same thing is said in two ways.

    >>> config = ModelConfig(50, lstms=(LSTMConfig(16), LSTMConfig(12)), dense=(DenseConfig(8, "relu"),))
    >>> config.softmax_size
    8
    >>> ModelConfig(50, hidden_size=16, num_layers=2).lstm_layers
    (LSTMConfig(size=16, use_bias=True), LSTMConfig(size=16, use_bias=True))
    """

    vocab_size: int
    embedding_size: int = 256
    hidden_size: int = 1024
    num_layers: int = 1
    projection_size: int = 0
    tied: bool = False
    dropout: float = 0.0
    lstms: tuple[LSTMConfig, ...] = ()
    dense: tuple[DenseConfig, ...] = ()
    dropout_rates: tuple[float, ...] = ()
    softmax_bias: bool = True

    @property
    def lstm_layers(self) -> tuple[LSTMConfig, ...]:
        """The LSTM layers, from the first to the last."""
        return self.lstms or (LSTMConfig(self.hidden_size),) * self.num_layers

    @property
    def dense_layers(self) -> tuple[DenseConfig, ...]:
        """The Dense layers between the LSTM stack and the softmax."""
        bottleneck = (DenseConfig(self.projection_size, use_bias=False),) if self.projection_size else ()
        return self.dense or bottleneck

    @property
    def dropout_after(self) -> tuple[float, ...]:
        """The dropout rate after the embedding, after each LSTM layer and after each Dense layer."""
        usual = (self.dropout,) * (1 + len(self.lstm_layers)) + (0.0,) * len(self.dense_layers)
        return self.dropout_rates or usual

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.dense_layers[-1].size if self.dense_layers else self.hidden_size

    def __post_init__(self) -> None:
        _require_types(self)
        self._resolve_lstms()
        _require_at_least(self, 1, "vocab_size", "embedding_size", "hidden_size", "num_layers")
        _require_at_least(self, 0, "projection_size")
        require(not (self.dense and self.projection_size), "dense", "no `projection_size` beside it", self.dense)
        fits = not self.tied or self.embedding_size == self.softmax_size
        expected = f"an `embedding_size` of {self.softmax_size}, the width of the softmax rows"
        require(fits, "tied", expected, self.embedding_size)
        require(0.0 <= self.dropout < 1.0, "dropout", "a rate in [0, 1)", self.dropout)
        places = 1 + len(self.lstm_layers) + len(self.dense_layers)
        if self.dropout_rates:
            fits = len(self.dropout_rates) == places and all(0.0 <= rate < 1.0 for rate in self.dropout_rates)
            expected = f"{places} rates in [0, 1): after the embedding, each LSTM and each Dense layer"
            require(fits, "dropout_rates", expected, self.dropout_rates)
            require(self.dropout == 0.0, "dropout_rates", "no `dropout` beside it", self.dropout)

    def _resolve_lstms(self) -> None:
        """Sets `hidden_size` and `num_layers` to those of `lstms`, unless they say something else."""
        if not self.lstms:
            return
        for name, value in (("hidden_size", self.lstms[-1].size), ("num_layers", len(self.lstms))):
            given, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            require(given in (value, default), name, f"{value}, as `lstms` says", given)
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class TrainConfig:
    """What a training step does. Another value compiles the step again.

    Args:
      batch_size: number of contiguous streams of text.
      sequence_length: time steps of truncated backpropagation.
      loss: "sampled_softmax", "nce" (noise-contrastive estimation), or "full" for the exact softmax, the slow
        baseline to compare with.
      num_sampled: classes sampled per step and shared by the batch, at most the whole vocabulary; not used by loss
        "full".
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

    batch_size: int = 32
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
        _require_at_least(self, 0, "initial_accumulator_value", "clip_norm")
        require_seed(self.seed)


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


@dataclass(frozen=True)
class MeshConfig:
    """The devices that share a model. A run may be resumed on others.

    Args:
      vocab_shards: parts into which the rows of the tables are cut; 0 for as many as there are devices for. A run that
        is resumed without these options keeps its own, if there are as many devices.
      data_shards: copies of the tables, each with its own streams of text.

    Raises:
      InputError: a value is out of range.
    """

    vocab_shards: int = 0
    data_shards: int = 1

    def __post_init__(self) -> None:
        _require_types(self)
        _require_at_least(self, 0, "vocab_shards")
        _require_at_least(self, 1, "data_shards")


@dataclass(frozen=True)
class ProcessConfig:
    """Several processes that train one model together, each with its own devices.

    Args:
      distributed: whether this is one of several processes, which are all started with the same command. Under SLURM
        and Kubernetes the next three are found out.
      coordinator_address: host:port of process 0.
      num_processes: number of processes; 0 if it is found out.
      process_id: number of this one, from 0; -1 if it is found out.
    """

    distributed: bool = False
    coordinator_address: str = ""
    num_processes: int = 0
    process_id: int = -1

    def __post_init__(self) -> None:
        _require_types(self)
        for name in ("coordinator_address", "num_processes", "process_id"):
            idle = not self.distributed and getattr(self, name) != type(self).__dataclass_fields__[name].default
            require(not idle, name, "`distributed` beside it", getattr(self, name))


def require_seed(seed: int) -> None:
    """Raises `InputError` unless a seed is one that JAX tells apart from all others."""
    require(0 <= seed < 2**32, "seed", "an integer from 0 to 4294967295", seed)


EXPECTED = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}


def _require_types(config: Any) -> None:
    """Checks each field against its type; a float may be given as an integer."""
    types = get_type_hints(type(config))
    for field in fields(config):
        kind, value = types[field.name], getattr(config, field.name)
        if get_origin(kind) is Literal:
            require(isinstance(value, str) and value in get_args(kind), field.name, f"one of {get_args(kind)}", value)
        elif get_origin(kind) is tuple:
            require(isinstance(value, tuple), field.name, "a tuple", value)
            for entry in value:
                _require_type(field.name, entry, get_args(kind)[0])
        else:
            _require_type(field.name, value, kind)


def _require_type(name: str, value: Any, kind: type) -> None:
    right = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    right = right and (kind is not float or math.isfinite(value))
    require(right, name, EXPECTED.get(kind, f"a {kind.__name__}"), value)


def _require_at_least(config: Any, lowest: int, *names: str) -> None:
    for name in names:
        require(getattr(config, name) >= lowest, name, f"at least {lowest}", getattr(config, name))
