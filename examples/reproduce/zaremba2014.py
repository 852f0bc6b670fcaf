"""The LSTMs of Zaremba et al. 2014, "Recurrent Neural Network Regularization", on the Penn Treebank.

    python examples/reproduce/zaremba2014.py --data ptb --size small

The paper adds the losses of the time steps of a batch, and jaxlm takes their mean: a learning rate of 1 and a gradient
norm of 5 become 20 and 0.25 for 20 time steps. All parameters start at uniform numbers, as in the authors' code. The
learning rate falls as in TensorFlow's ptb_word_lm.py. The best model by validation is tested.
https://arxiv.org/abs/1409.2329
"""

from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from texts import PENN_TREEBANK, prepare, report, run_script

import jaxlm
from convert.files.run_directory import write
from jaxlm.data.batches import batches_per_epoch


class Size(NamedTuple):
    """A model of the paper, section 4.1 and table 1."""

    hidden_size: int
    dropout: float
    sequence_length: int
    clip_norm: float  # of the sum over time steps
    epochs: int
    constant_epochs: int  # with the first learning rate
    divisor: float  # of the learning rate, in each epoch afterwards
    limit: float  # of the initial values
    published: float  # test perplexity


SIZES = {
    "small": Size(200, 0.0, 20, 5.0, 13, 4, 2.0, 0.1, 114.5),
    "medium": Size(650, 0.5, 35, 5.0, 39, 6, 1.2, 0.05, 82.7),
    "large": Size(1500, 0.65, 35, 10.0, 55, 14, 1.15, 0.04, 78.4),
}


def main(
    data: Path,
    size: Literal["small", "medium", "large"] = "small",
    out: Path = Path("runs/zaremba2014"),
    epochs: int = 0,
    divisor: int = 1,
    random_offsets: bool = False,
    check: bool = True,
) -> None:
    """Trains a model of the paper, or resumes its run, and prints its test perplexity.

    Args:
      data: Directory with ptb.train.txt, ptb.valid.txt and ptb.test.txt.
      size: Model of the paper.
      out: Directory of the corpus and the runs.
      epochs: Length in epochs, if not that of the paper.
      divisor: Divides the widths, for a trial.
      random_offsets: Begin each epoch at another word, which the paper does not.
      check: Stop at texts that differ from the published ones.
    """
    paper, corpus = SIZES[size], prepare(data, PENN_TREEBANK, out / "data", check)
    length, epochs = paper.sequence_length, epochs or paper.epochs
    width = max(1, paper.hidden_size // divisor)
    model = jaxlm.ModelConfig(len(corpus.vocabulary), width, width, num_layers=2, dropout=paper.dropout)
    config = jaxlm.TrainConfig(
        batch_size=20,
        sequence_length=length,
        random_offsets=random_offsets,
        loss="full",
        optimizer="sgd",
        clip_norm=paper.clip_norm / length,
    )
    schedule = jaxlm.ScheduleConfig(
        learning_rate=length,
        warmup_steps=0,
        epochs=epochs,
        decay_fraction=max(0.0, 1 - paper.constant_epochs / epochs),
        epoch_decay=paper.divisor,
        eval_every=batches_per_epoch(corpus.train.size, config.batch_size, length),
        eval_tokens=0,
    )
    if not (out / size).exists():
        write(out / size, uniform_model(model, paper.limit), corpus.vocabulary)
    if jaxlm.train(corpus, out / size, model, config, schedule):  # unless it was stopped
        report(out / size, corpus.test, paper.published)


def uniform_model(config: jaxlm.ModelConfig, limit: float) -> jaxlm.LanguageModel:
    """Returns a model whose parameters are uniform in [-limit, limit]."""
    model, rng = jaxlm.LanguageModel(config, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    draw = jax.tree.map(lambda x: rng.uniform(-limit, limit, x.shape).astype(np.float32), nnx.state(model))
    nnx.update(model, jax.device_put(draw))
    return model


if __name__ == "__main__":
    run_script(main)
