"""Train a word-level LSTM language model over a very large vocabulary."""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jaxlm.config import InputError, ModelConfig, TrainConfig

if TYPE_CHECKING:  # what is slow to import waits until a command needs it: --help does not
    from jaxlm.data import Corpus
    from jaxlm.evaluation import Evaluation

ZIPF_LIMIT = 0.3  # nats; English and German novels have 0.12, documentation 0.18, equal counts 0.9 and more

app = tyro.extras.SubcommandApp()


@app.command
def prepare(
    train: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    valid: Path | None = None,
    test: Path | None = None,
    vocab_size: int = 200_000,
    split: Literal["words", "whitespace"] = "words",
    vocabulary: Path | None = None,
) -> None:
    """Turn texts into a vocabulary and token files.

    Args:
      train: Training texts: plain, .gz or .xz, UTF-8. The vocabulary is built from these alone.
      out: Directory to make.
      valid: Validation text; without it a tail of the training text is held out.
      test: Test text; without it a tail of the training text is held out.
      vocab_size: Words to keep, by decreasing count; the others become <unk>.
      split: "words" and punctuation marks, or "whitespace" for text that is tokenised already.
      vocabulary: vocabulary.json of a model that is there already; it replaces --vocab-size and --split.
    """
    from jaxlm import data
    from jaxlm.vocabulary import UNK, Vocabulary

    if not train:
        raise InputError("No training text: expected jaxlm prepare TEXT [TEXT ...] --out DIRECTORY.")
    for name, path in (("validation", valid), ("test", test)):
        if path is None:
            print(f"no {name} text given: a tail of the training text is held out for it")
    given = Vocabulary.load(vocabulary) if vocabulary else None
    corpus = data.prepare(train, out, valid=valid, test=test, vocab_size=vocab_size, split=split, vocabulary=given)
    print(data.describe(corpus))
    if not corpus.vocabulary.counts[corpus.vocabulary.ids[UNK]]:
        print(f"every training word is in the vocabulary, so {UNK} is never trained: a smaller --vocab-size trains it")
    divergence = corpus.vocabulary.zipf_divergence
    if divergence > ZIPF_LIMIT:
        print(
            f"the words' counts are {divergence:.2f} nats from Zipf's law (ordinary text: about"
            " 0.1), so log-uniform sampling suits them badly: train with --sampler unigram"
        )
    print(f"written to {out}")


@app.command
def train(
    data: tyro.conf.Positional[Path],
    /,
    out: Path,
    embedding_size: int = ModelConfig.embedding_size,
    hidden_size: int = ModelConfig.hidden_size,
    num_layers: int = ModelConfig.num_layers,
    projection_size: int = ModelConfig.projection_size,
    tied: bool = ModelConfig.tied,
    dropout: float = ModelConfig.dropout,
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008
) -> None:
    """Train a language model, or go on with a run that was stopped.

    Args:
      data: Directory that `jaxlm prepare` made.
      out: Run directory; where it holds a run of the same settings, that goes on.
      embedding_size: Width of an embedding row.
      hidden_size: Width of each LSTM layer.
      num_layers: LSTM layers.
      projection_size: Width of a linear bottleneck between LSTM and softmax rows; 0 is none.
      tied: One table for embedding and softmax rows.
      dropout: Rate on the non-recurrent connections.
      config: How to train.
    """
    from jaxlm import data as jaxlm_data
    from jaxlm.loop import fit
    from jaxlm.plot import plot_metrics

    corpus = jaxlm_data.load_corpus(data)
    model = ModelConfig(len(corpus.vocabulary), embedding_size, hidden_size, num_layers, projection_size, tied, dropout)
    evaluation = fit(corpus, out, model, config, data=str(data.resolve()))
    print(f"curve: {plot_metrics(out, corpus)}")
    if evaluation is not None:
        _print_evaluation("valid", evaluation, corpus)


@app.command
def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    data: Path | None = None,
    max_tokens: int = 0,
    batch_size: int = 32,
) -> None:
    """Compute the exact perplexity of a run's best model on the validation and test text.

    Args:
      run: Run directory.
      data: Directory that `jaxlm prepare` made, where it is not where it was in training.
      max_tokens: At most so many words of each text, spread evenly over it; 0 is all.
      batch_size: Streams of text read side by side.
    """
    from jaxlm import data as jaxlm_data
    from jaxlm import evaluation
    from jaxlm.checkpoint import load_model

    model, vocabulary, config = load_model(run)
    corpus = jaxlm_data.load_corpus(data or Path(config.data))
    if corpus.vocabulary != vocabulary:
        raise InputError(f"The vocabulary of {data or config.data} is not that of {run}; give its own with --data.")
    for part in ("valid", "test"):
        tokens = corpus.parts[part]
        result = evaluation.evaluate(model, tokens, max_tokens=max_tokens, batch_size=batch_size, progress=True)
        _print_evaluation(part, result, corpus)


@app.command
def generate(
    run: tyro.conf.Positional[Path],
    /,
    prompt: str = "",
    num_words: int = 100,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
) -> None:
    """Write text from a prompt with a run's best model.

    Args:
      run: Run directory.
      prompt: Text to go on from; empty begins a line.
      num_words: Words to write.
      temperature: Below 1 prefers likely words, 0 takes the likeliest.
      top_k: Draw among the k likeliest words; 0 among all.
      seed: Of the draws.
    """
    import jax
    import numpy as np

    from jaxlm.checkpoint import load_model
    from jaxlm.generation import generate as draw
    from jaxlm.vocabulary import EOS, UNK

    model, vocabulary, _ = load_model(run)
    ids = np.concatenate([np.array([vocabulary.ids[EOS]], np.int32), vocabulary.encode(prompt)])
    unk = vocabulary.ids[UNK]
    if unk in ids:
        print(f"(words the model does not know read as {UNK}: {vocabulary.decode(ids[1:])})", file=sys.stderr)
    words = draw(model, ids, num_words, temperature=temperature, top_k=top_k, avoid=(unk,), key=jax.random.key(seed))
    print(vocabulary.decode([*ids[1:].tolist(), *words]))


def _print_evaluation(part: str, evaluation: "Evaluation", corpus: "Corpus") -> None:
    from jaxlm.data import unigram_loss

    unigram = math.exp(unigram_loss(corpus.parts[part], corpus.vocabulary))
    print(
        f"{part}: exact perplexity {evaluation.perplexity:.2f} on {evaluation.num_tokens:,} words"
        f" (unigram model, which knows the words' frequencies alone: {unigram:.2f})"
    )


def run_command(command: Callable[[], int | None]) -> int:
    """Returns a command's exit code; what the user gave wrong becomes one line on stderr and code 2."""
    try:
        return command() or 0
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def keep_compiled_programmes() -> None:
    """Has JAX keep what it compiles in the user's cache directory, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def main() -> None:
    """Entry point of the `jaxlm` command."""
    keep_compiled_programmes()  # read when JAX is imported
    sys.exit(run_command(lambda: app.cli(prog="jaxlm", description=__doc__)))


if __name__ == "__main__":
    main()
