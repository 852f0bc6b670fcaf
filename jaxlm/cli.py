"""Train a word-level LSTM language model over a very large vocabulary."""

import dataclasses
import inspect
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.errors import InputError

if TYPE_CHECKING:  # slow imports wait until a command needs them: --help does not
    import numpy as np

    from jaxlm.corpus import Corpus
    from jaxlm.evaluation import Evaluation
    from jaxlm.vocabulary import Vocabulary

ZIPF_LIMIT = 0.3  # nats; English and German novels have 0.12, documentation 0.18, equal counts 0.9 and more

app = tyro.extras.SubcommandApp()


@dataclass(frozen=True)
class ModelOptions(ModelConfig):
    __doc__ = ModelConfig.__doc__
    vocab_size: tyro.conf.Suppress[int] = 1  # the corpus decides
    lstms: tyro.conf.Suppress[tuple[LSTMConfig, ...]] = ()  # too long for options: imported models have them
    dense: tyro.conf.Suppress[tuple[DenseConfig, ...]] = ()
    dropout_rates: tyro.conf.Suppress[tuple[float, ...]] = ()


@app.command
def prepare(
    train: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    valid: Path | None = None,
    test: Path | None = None,
    vocab_size: int = 200_000,
    tokenization: Literal["words", "whitespace"] = "words",
    vocabulary: Path | None = None,
) -> None:
    """Turn texts into a vocabulary and token files.

    Args:
      train: Training texts: plain, .gz or .xz, in UTF-8. The vocabulary comes from these alone.
      out: Directory to make.
      valid: Validation text. Without it, the end of the training text is held out.
      test: Test text. Without it, the end of the training text is held out.
      vocab_size: Maximum number of words; less frequent ones become <unk>.
      tokenization: "words" and punctuation marks, or "whitespace" for text that is already tokenized.
      vocabulary: vocabulary.json of an existing model. Replaces --vocab-size and --tokenization.
    """
    from jaxlm import corpus as corpora
    from jaxlm.vocabulary import UNK, Vocabulary

    if not train:
        raise InputError("No training text: expected jaxlm prepare TEXT [TEXT ...] --out DIRECTORY.")
    for name, path in (("validation", valid), ("test", test)):
        if path is None:
            print(f"no {name} text given: holding out the end of the training text")
    given = Vocabulary.load(vocabulary) if vocabulary else None
    corpus = corpora.prepare(
        train, out, valid=valid, test=test, vocab_size=vocab_size, tokenization=tokenization, vocabulary=given
    )
    print(corpora.describe(corpus))
    if not corpus.vocabulary.counts[corpus.vocabulary.ids[UNK]]:
        print(f"every training word is in the vocabulary, so {UNK} is never trained: lower --vocab-size to train it")
    divergence = corpus.vocabulary.zipf_divergence
    if divergence > ZIPF_LIMIT:
        print(
            f"the word counts are {divergence:.2f} nats from Zipf's law (ordinary text: about 0.1), so log-uniform"
            " sampling suits them badly: train with --sampler unigram"
        )
    print(f"written to {out}")


@app.command
def train(
    data: tyro.conf.Positional[Path],
    /,
    out: Path,
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008
    schedule: tyro.conf.OmitArgPrefixes[ScheduleConfig] = ScheduleConfig(),  # noqa: B008
) -> None:
    """Train a language model, or resume a run.

    Args:
      data: Directory made by `jaxlm prepare`.
      out: Run directory. Resumes the run it holds, if the settings of the model and of a training step are the
        same; the schedule may change.
      model: Shape of the model. Without any of its options, that of the run.
      config: What a training step does.
      schedule: Learning rate, length and evaluations.
    """
    from jaxlm.corpus import load_corpus
    from jaxlm.training_loop import train as train_model

    corpus = load_corpus(data)
    shape = _model_config(model, out, len(corpus.vocabulary))
    evaluation = train_model(corpus, out, shape, config, schedule, data=data.resolve())
    _print_result(out, corpus, evaluation)


def _model_config(options: ModelOptions, out: Path, vocab_size: int) -> ModelConfig:
    """Returns what the options say, or if none is given, the config of an existing run: options cannot say it all."""
    from jaxlm.run import CONFIG_FILE, load_config

    if options == ModelOptions() and (out / CONFIG_FILE).exists():
        return load_config(out).model
    return ModelConfig(**dataclasses.asdict(options) | {"vocab_size": vocab_size})


@app.command
def resume(
    run: tyro.conf.Positional[Path],
    /,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
) -> None:
    """Resume a run that was stopped or killed, without repeating its settings.

    Args:
      run: Run directory.
      steps: New length of the whole run in steps, those already done included.
      epochs: New length of the whole run in passes over the training text.
      minutes: New length of the whole run in minutes, not counting evaluation.
      learning_rate: New highest learning rate.
    """
    from jaxlm.corpus import load_corpus
    from jaxlm.run import load_config
    from jaxlm.training_loop import resume as resume_training

    evaluation = resume_training(run, steps=steps, epochs=epochs, minutes=minutes, learning_rate=learning_rate)
    _print_result(run, load_corpus(load_config(run).data), evaluation)


@app.command
def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    data: Path | None = None,
    max_tokens: int = 0,
    batch_size: int = 32,
) -> None:
    """Compute the exact perplexity of a run's best model on the validation and test texts.

    Args:
      run: Run directory.
      data: Directory made by `jaxlm prepare`, if it is no longer where it was during training.
      max_tokens: Maximum number of words of each text, spread evenly over it; 0 for all.
      batch_size: Streams of text read side by side.
    """
    from jaxlm.corpus import load_corpus
    from jaxlm.evaluation import evaluate as evaluate_model
    from jaxlm.run import load_model

    model, vocabulary, config = load_model(run)
    if data is None and not config.data:
        raise InputError(f"{run} was not trained on a corpus yet; name one with `data`.")
    corpus = load_corpus(data or config.data)
    if corpus.vocabulary != vocabulary:
        raise InputError(f"{data or config.data} has another vocabulary than {run}; name the right corpus with `data`.")
    for split in ("valid", "test"):
        tokens = getattr(corpus, split)
        result = evaluate_model(model, tokens, max_tokens=max_tokens, batch_size=batch_size, progress=True)
        _print_evaluation(split, result, tokens, vocabulary)


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
      prompt: Text to continue. Without it, the text begins a line.
      num_words: Words to write.
      temperature: Below 1 favors likely words; 0 takes the most likely one.
      top_k: Sample among the k most likely words; 0 for all.
      seed: Random seed for sampling.
    """
    import jax
    import numpy as np

    from jaxlm.generation import generate as generate_words
    from jaxlm.run import load_model
    from jaxlm.vocabulary import EOS, UNK

    model, vocabulary, _ = load_model(run)
    ids = np.concatenate([np.array([vocabulary.ids[EOS]], np.int32), vocabulary.encode(prompt)])
    unk = vocabulary.ids[UNK]
    if unk in ids:
        print(f"(unknown words are read as {UNK}: {vocabulary.decode(ids[1:])})", file=sys.stderr)
    key = jax.random.key(seed)
    words = generate_words(model, ids, num_words, temperature=temperature, top_k=top_k, avoid=(unk,), key=key)
    print(vocabulary.decode([*ids[1:].tolist(), *words]))


@app.command
def doctor(path: tyro.conf.Positional[Path | None] = None, /) -> int:
    """Check this machine, and the files of a run or a corpus. Exits with 1 if something is wrong.

    Args:
      path: Run directory, or directory made by `jaxlm prepare`.
    """
    from jaxlm.doctor import examine

    findings = list(examine(path))
    width = max(len(finding.subject) for finding in findings)
    for subject, result, is_good in findings:
        print(f"{'ok' if is_good else 'WRONG':5}  {subject:{width}}  {result}")
    return 0 if all(finding.is_good for finding in findings) else 1


def _print_result(run: Path, corpus: "Corpus", evaluation: "Evaluation | None") -> None:
    from jaxlm.plot import plot_metrics

    print(f"curve: {plot_metrics(run, corpus)}")
    if evaluation is not None:
        _print_evaluation("valid", evaluation, corpus.valid, corpus.vocabulary)


def _print_evaluation(split: str, evaluation: "Evaluation", tokens: "np.ndarray", vocabulary: "Vocabulary") -> None:
    from jaxlm.corpus import unigram_loss
    from jaxlm.evaluation import DIVERGED

    unigram = unigram_loss(tokens, vocabulary)
    if evaluation.loss > unigram + DIVERGED:
        print(
            f"{split}: exact loss {evaluation.loss:.2f} nats per word on {evaluation.num_tokens:,} words, far above the"
            f" {unigram:.2f} of the unigram model: the model has diverged"
        )
        return
    print(
        f"{split}: exact perplexity {evaluation.perplexity:.2f} on {evaluation.num_tokens:,} words"
        f" (unigram model, which knows only the word frequencies: {math.exp(unigram):.2f})"
    )


def run(args: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process; returns the exit code."""
    commands = (prepare, train, resume, evaluate, generate, doctor)
    return run_command(lambda: app.cli(prog="jaxlm", description=__doc__, args=args), *commands)


def run_command(command: Callable[[], int | None], *commands: Callable) -> int:
    """Runs a command. Bad input becomes one line on stderr and exit code 2.

    Args:
      command: runs the command line.
      commands: the functions behind it. Their parameters, in backticks in a message, are shown as options.

    Returns:
      The exit code.
    """
    try:
        return command() or 0
    except (InputError, OSError) as error:
        print(f"error: {_with_options(' '.join(str(error).split()), commands)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _with_options(message: str, commands: tuple[Callable, ...]) -> str:
    """Writes `num_sampled` as --num-sampled, if a command has such an option."""
    options = set()
    for command in commands:
        for parameter in inspect.signature(command).parameters.values():
            if dataclasses.is_dataclass(parameter.default):
                options |= {field.name for field in dataclasses.fields(parameter.default)}
            elif parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
                options.add(parameter.name)

    def option(match: re.Match) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in options else match[0]

    return re.sub(r"`(\w+)`", option, message)


def show_messages() -> None:
    """Prints the messages of jaxlm, above its progress bars."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)

    logging.getLogger("jaxlm").addHandler(Handler())
    logging.getLogger("jaxlm").setLevel(logging.INFO)
    logging.getLogger("jaxlm").propagate = False  # absl adds a handler to the root logger


def enable_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the user's cache directory, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def main() -> None:
    """Entry point of the `jaxlm` command."""
    enable_compilation_cache()  # read when JAX is imported
    show_messages()
    sys.exit(run())
