"""The training step that the benchmarks time: its sizes as options, its words, its states and its FLOP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

import jaxlm

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class Problem:
    """Sizes of a training step.

    Args:
      vocab_size: Number of words.
      embedding_size: Width of an embedding row.
      hidden_size: Width of the LSTM.
      projection_size: Width of a bottleneck between LSTM and softmax; 0 for none.
      loss: Loss of jaxlm; the others have theirs in their names.
      num_sampled: Sampled classes.
      batch_size: Streams of text.
      sequence_length: Time steps.
      optimizer: Optimizer, with lazy updates of rows where the peer has them.
      beta_2: Adam's decay of the mean of squared gradients.
      compute_dtype: Operands of the products of jaxlm and PyTorch; "auto" is bfloat16 where the processor has it.
    """

    vocab_size: int = 200_000
    embedding_size: int = 256
    hidden_size: int = 1024
    projection_size: int = 0
    loss: Literal["sampled_softmax", "full"] = "sampled_softmax"
    num_sampled: int = 1000
    batch_size: int = 32
    sequence_length: int = 35
    optimizer: Literal["adagrad", "adam"] = "adagrad"
    beta_2: float = 0.999
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def softmax_size(self) -> int:
        """Width of a softmax row."""
        return self.projection_size or self.hidden_size

    @property
    def words(self) -> int:
        """Words of a step."""
        return self.batch_size * self.sequence_length

    @property
    def lstm_flop(self) -> int:
        """FLOP of the products of the LSTM's forward pass; the backward pass has twice as many."""
        return 2 * self.words * self.hidden_size * 4 * (self.embedding_size + self.hidden_size)

    @property
    def loss_flop(self) -> int:
        """FLOP of the products of the loss and its gradient, each computed once."""
        classes = self.vocab_size if self.loss == "full" else self.num_sampled
        return 6 * self.words * self.softmax_size * classes

    @property
    def flop(self) -> int:
        """FLOP of the products of a training step."""
        return 3 * self.lstm_flop + 6 * self.words * self.hidden_size * self.projection_size + self.loss_flop

    @property
    def model_config(self) -> jaxlm.ModelConfig:
        """The model."""
        sizes = (self.vocab_size, self.embedding_size, self.hidden_size)
        return jaxlm.ModelConfig(*sizes, projection_size=self.projection_size)

    @property
    def train_config(self) -> jaxlm.TrainConfig:
        """The settings of a step."""
        return jaxlm.TrainConfig(
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            loss=self.loss,
            num_sampled=self.num_sampled,
            optimizer=self.optimizer,
            beta_2=self.beta_2,
            compute_dtype=self.compute_dtype,
        )

    def state(self, mesh: "Mesh | None" = None) -> jaxlm.TrainState:
        """Returns a state with random weights."""
        from flax import nnx

        model = jaxlm.LanguageModel(self.model_config, rngs=nnx.Rngs(0), mesh=mesh)
        return jaxlm.TrainState.create(model, self.train_config)

    def texts(self, number: int, seed: int = 0) -> np.ndarray:
        """Returns words for steps, `[number, batch_size, sequence_length + 1]`; word n is as frequent as 1 / n."""
        uniform = np.random.default_rng(seed).random((number, self.batch_size, self.sequence_length + 1))
        return np.exp(uniform * np.log(self.vocab_size)).astype(np.int32) - 1

    def __str__(self) -> str:
        return (
            f"V {self.vocab_size:,}, E {self.embedding_size}, H {self.hidden_size}, projection {self.projection_size},"
            f" {self.loss}, S {self.num_sampled:,}, B {self.batch_size}, T {self.sequence_length}, {self.optimizer},"
            f" {self.compute_dtype}"
        )


ProblemOptions = Annotated[Problem, tyro.conf.OmitArgPrefixes]
