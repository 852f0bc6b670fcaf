"""Settings of the model, of a training step and of a run's schedule. They are checked when made."""

from dataclasses import dataclass, fields
from typing import Literal

from jaxlm.config_checks import require_at_least, require_seed, require_type, require_types
from jaxlm.errors import require

LENGTHS = ("steps", "epochs", "minutes")  # fields of ScheduleConfig, of which a run has one

Optimizer = Literal["adam", "adagrad", "sgd"]
Sampler = Literal["log_uniform", "uniform", "unigram"]
Loss = Literal["sampled_softmax", "nce", "full"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
Activation = Literal["linear", "relu", "tanh"]


@dataclass(frozen=True)
class LSTMConfig:
    """One LSTM layer, `size` units wide."""

    size: int
    use_bias: bool = True

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(self, 1, "size")


@dataclass(frozen=True)
class DenseConfig:
    """One Dense layer between the LSTM stack and the softmax, `size` units wide."""

    size: int
    activation: Activation = "linear"
    use_bias: bool = True

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(self, 1, "size")


@dataclass(frozen=True, init=False)
class ModelConfig:
    """Shape of an Embedding -> LSTM stack -> (Dense layers) -> softmax language model.

    The config holds the chain of layers: `lstms`, `dense` and `dropout_rates`. `hidden_size` with `num_layers`,
    `projection_size` and `dropout` are the short form of it, by default one LSTM of 1024 units.

    Args:
      vocab_size: number of words V; ids are sorted by decreasing frequency.
      embedding_size: width of an embedding row.
      hidden_size: width of each LSTM layer.
      num_layers: number of LSTM layers.
      projection_size: width of a linear bottleneck between the LSTM and the softmax rows (Sak et al. 2014,
        https://arxiv.org/abs/1402.1128); 0 for none.
      tied: whether the embedding rows also serve as softmax rows (Press and Wolf 2017,
        https://arxiv.org/abs/1608.05859); both must have the same width.
      dropout: rate on the non-recurrent connections during training: after the embedding and after each LSTM
        layer (Zaremba et al. 2014, https://arxiv.org/abs/1409.2329, section 3).
      lstms: the LSTM layers, in place of `hidden_size` and `num_layers`.
      dense: the Dense layers between the LSTM stack and the softmax, in place of `projection_size`.
      dropout_rates: the rate after the embedding, after each LSTM layer and after each Dense layer, in place of
        `dropout`.
      softmax_bias: whether the softmax has biases. If not, they are zeros that are not trained.

    Raises:
      InputError: a value is out of range, or two settings contradict each other.

    >>> config = ModelConfig(50, lstms=(LSTMConfig(16), LSTMConfig(12)), dense=(DenseConfig(8, "relu"),))
    >>> config.softmax_size
    8
    >>> ModelConfig(50, hidden_size=16, num_layers=2).lstms
    (LSTMConfig(size=16, use_bias=True), LSTMConfig(size=16, use_bias=True))
    """

    vocab_size: int
    embedding_size: int
    lstms: tuple[LSTMConfig, ...]
    dense: tuple[DenseConfig, ...]
    dropout_rates: tuple[float, ...]
    tied: bool
    softmax_bias: bool

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 256,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        projection_size: int | None = None,
        tied: bool = False,
        dropout: float | None = None,
        lstms: tuple[LSTMConfig, ...] = (),
        dense: tuple[DenseConfig, ...] = (),
        dropout_rates: tuple[float, ...] = (),
        softmax_bias: bool = True,
    ):
        short = (
            ("hidden_size", hidden_size, int, 1, "lstms", lstms),
            ("num_layers", num_layers, int, 1, "lstms", lstms),
            ("projection_size", projection_size, int, 0, "dense", dense),
            ("dropout", dropout, float, 0, "dropout_rates", dropout_rates),
        )
        for name, value, kind, lowest, long_name, long in short:
            if value is not None:
                require_type(name, value, kind)
                require(value >= lowest, name, f"at least {lowest}", value)
                require(not long, name, f"no value beside `{long_name}`", value)
        require(dropout is None or dropout < 1.0, "dropout", "a rate in [0, 1)", dropout)
        lstms = lstms or (LSTMConfig(1024 if hidden_size is None else hidden_size),) * (num_layers or 1)
        dense = dense or ((DenseConfig(projection_size, use_bias=False),) if projection_size else ())
        values = (vocab_size, embedding_size, lstms, dense, dropout_rates, tied, softmax_bias)
        for field, entry in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, entry)
        require_types(self)
        require_at_least(self, 1, "vocab_size", "embedding_size")
        usual = (dropout or 0.0,) * (1 + len(lstms)) + (0.0,) * len(dense)
        object.__setattr__(self, "dropout_rates", dropout_rates or usual)
        fits = len(self.dropout_rates) == len(usual) and all(0.0 <= rate < 1.0 for rate in self.dropout_rates)
        expected = f"{len(usual)} rates in [0, 1): after the embedding, each LSTM and each Dense layer"
        require(fits, "dropout_rates", expected, dropout_rates)
        expected = f"an `embedding_size` of {self.softmax_size}, the width of the softmax rows"
        require(not tied or embedding_size == self.softmax_size, "tied", expected, embedding_size)

    @property
    def hidden_size(self) -> int:
        """Width of the outputs of the LSTM stack."""
        return self.lstms[-1].size

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.dense[-1].size if self.dense else self.hidden_size


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training step. A change compiles the step again.

    Args:
      batch_size: number of contiguous streams of text.
      sequence_length: time steps of truncated backpropagation.
      random_offsets: whether each epoch begins at a random one of the first `sequence_length` words of each stream, so
        that backpropagation is truncated at other words in each epoch (the purpose of the random lengths of Merity et
        al. 2018, https://arxiv.org/abs/1708.02182, section 4.1).
      loss: "sampled_softmax", "nce" (noise-contrastive estimation), or "full" for the exact softmax, whose cost grows
        with the vocabulary.
      num_sampled: classes sampled per step and shared by the batch, at most the whole vocabulary; not used by loss
        "full".
      sampler: distribution of the sampled classes: "log_uniform" suits words sorted by frequency (Zipf's law),
        "unigram" follows the word counts, "uniform" suits classes of similar frequency.
      optimizer: updates the LSTM (dense) and the table rows (sparse, so that adam is lazy).
      initial_accumulator_value: initial value of Adagrad's sums of squares.
      beta_2: Adam's decay of the mean of squared gradients. Lazy Adam changes a row that was not updated for long by
        about learning_rate * 0.1 / sqrt(1 - beta_2), three times the learning rate by default; 0.99 suits short
        trainings over a very large vocabulary.
      clip_norm: limit on the global norm of the gradients; 0 for no clipping.
      clip_each: whether `clip_norm` limits the norm of each parameter's gradient separately, like Keras' `clipnorm`,
        instead of the global norm.
      train_embedding: whether the embedding is trained; tied rows must be.
      weight_decay: weight_decay * parameter is added to each gradient after clipping (L2); for table rows only in
        steps that touch them.
      activation_regularization: weight, in the loss, of the mean square of the outputs of the last LSTM, after dropout
        (AR of Merity et al. 2017, https://arxiv.org/abs/1708.01009). Your own body adds its own terms.
      temporal_activation_regularization: the same for the differences of these outputs, before dropout, from one time
        step to the next (TAR).
      average_after: number of steps after which the parameters are averaged over all later steps; evaluation and
        export use the averages (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046). 0 for never.
      average_patience: number n for which a run begins to average at the first evaluation whose loss is above the
        lowest of those more than n evaluations ago (NT-ASGD of Merity et al. 2018, section 3), or after
        `average_after` steps, whichever is earlier. 0 for never. It has no effect on a loop of your own around
        `train_step`.
      variational_dropout: whether the model's dropout draws one mask for all time steps of a sequence (Gal and
        Ghahramani 2016, https://arxiv.org/abs/1512.05287), instead of one per time step.
      embedding_dropout: rate at which whole words are dropped: all occurrences of a word in a batch share one draw, and
        the rows of the others are scaled by 1 / (1 - rate) (Merity et al. 2018, section 4.3).
      weight_dropout: rate of DropConnect on the trained recurrent kernels, with one mask per step (Merity et al. 2018,
        section 2).
      compute_dtype: data type of the operands of training's matrix products: "auto" is bfloat16 on TPUs, on GPUs (of
        NVIDIA from Ampere on) and on processors with bfloat16 instructions (AMX, AVX512_BF16), and float32 elsewhere. A
        run keeps the type it began with. Sums, states and parameters stay float32; evaluation is unaffected.
      seed: random seed for sampling and dropout, and for the initialization of a new model.

    Raises:
      InputError: a value is out of range.
    """

    batch_size: int = 32
    sequence_length: int = 35
    random_offsets: bool = False
    loss: Loss = "sampled_softmax"
    num_sampled: int = 1000
    sampler: Sampler = "log_uniform"
    optimizer: Optimizer = "adam"
    initial_accumulator_value: float = 1e-6
    beta_2: float = 0.999
    clip_norm: float = 10.0
    clip_each: bool = False
    train_embedding: bool = True
    weight_decay: float = 0.0
    activation_regularization: float = 0.0
    temporal_activation_regularization: float = 0.0
    average_after: int = 0
    average_patience: int = 0
    variational_dropout: bool = False
    embedding_dropout: float = 0.0
    weight_dropout: float = 0.0
    compute_dtype: ComputeDtype = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(self, 1, "batch_size", "sequence_length", "num_sampled")
        penalties = "weight_decay", "activation_regularization", "temporal_activation_regularization"
        others = "initial_accumulator_value", "clip_norm", "average_after", "average_patience"
        require_at_least(self, 0, *penalties, *others)
        for name in ("beta_2", "embedding_dropout", "weight_dropout"):
            rate = getattr(self, name)
            require(0.0 <= rate < 1.0, name, "a rate in [0, 1)", rate)
        require_seed(self.seed)

    @property
    def has_averages(self) -> bool:
        """Whether the parameters are averaged, from some step on."""
        return self.average_after > 0 or self.average_patience > 0


@dataclass(frozen=True)
class ScheduleConfig:
    """The schedule of a run: its learning rate, its length and its evaluations.

    Args:
      learning_rate: the highest value, held until the decay begins; 0.003 suits adam, 0.03 adagrad.
      warmup_steps: steps over which the learning rate rises linearly from 0.
      decay_fraction: last fraction of the run, over which the learning rate falls linearly to 0.
      epoch_decay: divides the learning rate at the beginning of each epoch within `decay_fraction`, counted in whole
        epochs, instead of the linear fall; 0 for none (Zaremba et al. 2014, https://arxiv.org/abs/1409.2329, section
        4.1). The length of the run is in `epochs`.
      steps: length of the run in steps; 0 for none.
      epochs: length in passes over the training text; one pass if `steps`, `epochs` and `minutes` are all 0.
      minutes: length in minutes, not counting compilation and evaluation.
      eval_every: steps between evaluations. Each one also writes a checkpoint.
      eval_tokens: words of the validation text per evaluation, spread evenly over it, rounded up to a multiple of 32;
        0 for all of it.
      save_minutes: minutes between checkpoints besides those of evaluations; 0 for none.
      save_steps: steps between checkpoints besides those of evaluations; 0 for none.

    Raises:
      InputError: a value is out of range.
    """

    learning_rate: float = 3e-3
    warmup_steps: int = 20
    decay_fraction: float = 0.5
    epoch_decay: float = 0.0
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    eval_every: int = 1000
    eval_tokens: int = 20_000
    save_minutes: float = 5.0
    save_steps: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(self, 1, "eval_every")
        require_at_least(
            self, 0, "warmup_steps", "steps", "eval_tokens", "epochs", "minutes", "save_minutes", "save_steps"
        )
        require(self.learning_rate > 0, "learning_rate", "a number above 0", self.learning_rate)
        require(0 <= self.decay_fraction <= 1, "decay_fraction", "a fraction in [0, 1]", self.decay_fraction)
        fits = self.epoch_decay == 0 or (self.epoch_decay >= 1 and self.epochs > 0)
        require(fits, "epoch_decay", "0, or a number of at least 1 beside `epochs`", self.epoch_decay)
        lengths = {name: getattr(self, name) for name in LENGTHS}
        fits = sum(value > 0 for value in lengths.values()) <= 1
        require(fits, "steps", "only one of `steps`, `epochs` and `minutes`", lengths)
