"""AWD-LSTM of Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models".

    python examples/reproduce/merity2018.py --data ptb --text ptb

Three LSTMs with tied rows, variational dropout, dropped words and weight-dropped recurrence, trained with SGD,
penalties on weights and activations, and weights that are averaged once the validation loss stops falling. The settings
are those of the authors' code. In place of its random sequence lengths, each epoch begins at a random offset.
https://arxiv.org/abs/1708.02182
"""

from pathlib import Path
from typing import Literal, NamedTuple

from texts import PENN_TREEBANK, WIKITEXT_2, Texts, prepare, report, run_script

import jaxlm
from jaxlm.data.batches import batches_per_epoch


class Settings(NamedTuple):
    """The settings for a data set."""

    texts: Texts
    batch_size: int
    epochs: int
    dropout_rates: tuple[float, ...]  # after the embedding, and after each LSTM
    published: str  # test perplexity


SETTINGS = {
    "ptb": Settings(PENN_TREEBANK, 20, 500, (0.4, 0.25, 0.25, 0.4), "58.8; 57.3 after fine-tuning"),
    "wikitext2": Settings(WIKITEXT_2, 80, 750, (0.65, 0.2, 0.2, 0.4), "66.0; 65.8 after fine-tuning"),
}


def main(
    data: Path,
    text: Literal["ptb", "wikitext2"] = "ptb",
    out: Path = Path("runs/merity2018"),
    epochs: int = 0,
    divisor: int = 1,
    check: bool = True,
) -> None:
    """Trains AWD-LSTM, or resumes its run, and prints its test perplexity.

    Args:
      data: Directory with ptb.train.txt, ptb.valid.txt and ptb.test.txt, or wiki.train.tokens and so on.
      text: Data set.
      out: Directory of the corpora and the runs.
      epochs: Length in epochs, if not that of the authors.
      divisor: Divides the widths, for a trial.
      check: Stop at texts that differ from the published ones.
    """
    paper = SETTINGS[text]
    corpus = prepare(data, paper.texts, out / f"{text}-data", check)
    narrow, wide, length = 400 // divisor, 1150 // divisor, 70
    model = jaxlm.ModelConfig(
        len(corpus.vocabulary),
        embedding_size=narrow,
        lstms=tuple(map(jaxlm.LSTMConfig, (wide, wide, narrow))),
        dropout_rates=paper.dropout_rates,
        tied=True,
    )
    config = jaxlm.TrainConfig(
        batch_size=paper.batch_size,
        sequence_length=length,
        random_offsets=True,
        loss="full",
        optimizer="sgd",
        clip_norm=0.25,
        variational_dropout=True,
        embedding_dropout=0.1,
        weight_dropout=0.5,
        weight_decay=1.2e-6,
        activation_regularization=2.0,
        temporal_activation_regularization=1.0,
        average_patience=5,  # epochs
    )
    schedule = jaxlm.ScheduleConfig(
        learning_rate=30.0,
        warmup_steps=0,
        decay_fraction=0.0,
        epochs=epochs or paper.epochs,
        eval_every=batches_per_epoch(corpus.train.size, paper.batch_size, length),
        eval_tokens=0,
    )
    if jaxlm.train(corpus, out / text, model, config, schedule, use_word_vectors=False):  # unless it was stopped
        report(out / text, corpus.test, paper.published)


if __name__ == "__main__":
    run_script(main)
