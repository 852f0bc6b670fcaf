"""Convert between jaxlm runs and Keras models. Every conversion is checked."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from convert.options import Dtype, ExportOptions, FormatName
from jaxlm.cli.arguments import RULES, OptionalWord, RunPath, TokenizationName, check_command, shown
from jaxlm.cli.command_line import run_command, show_messages
from jaxlm.errors import InputError, require

ENVIRONMENT = {  # read when TensorFlow and JAX are imported
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # of a GPU: TensorFlow and JAX share its memory, and NVIDIA's libraries do not round float32
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "NVIDIA_TF32_OVERRIDE": "0",
}

# argument names and metavars in --help
Model = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]

app = tyro.extras.SubcommandApp()


@app.command(name="to-keras")
def to_keras(
    run: RunPath,
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    /,
    format: FormatName | None = None,
    logits: bool = False,
    dtype: Dtype = "float32",
    single_step: bool = False,
    last_only: bool = False,
    keep_optimizer: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a run's best model as an ordinary Keras model.

    Reloads the file and checks it against JAX before moving it into place.

    Args:
      run: Run directory.
      out: Output file (.keras, .h5, .weights.h5, .tflite, .onnx), or SavedModel directory (without an extension).
      format: Output format. By default, the file extension selects it.
      logits: Leave out the softmax.
      dtype: Data type of the weights: float16 and bfloat16 for .keras, int8 (dynamic range) for .tflite.
      single_step: Take one word and the LSTM states, return probabilities and new states (.keras; always for .tflite).
      last_only: Return only the distribution of the next word, [batch, vocab] (.keras and .h5).
      keep_optimizer: Compile the model with the run's optimizer state, to continue training in Keras (.keras).
      overwrite: Replace an existing file.
    """
    from convert.files import run_directory
    from convert.files.export import check_output, export
    from jaxlm.files import readable_size

    check_output(out, overwrite, format)
    options = ExportOptions(logits, last_only, single_step, dtype)
    # no reference to the run is kept here, so that its memory can be released
    comparison = export(
        run_directory.load(run, keep_optimizer=keep_optimizer), out, options, format=format, overwrite=overwrite
    )
    files = out.rglob("*") if out.is_dir() else (out, out.with_name(f"{out.name}.data"))
    size = sum(path.stat().st_size for path in files if path.is_file())
    print(f"{comparison}\n{out}: {readable_size(size)}, verified as above")


@app.command(name="from-keras")
def from_keras(
    model: Model,
    run: RunPath,
    /,
    vocabulary: Path,
    unk: OptionalWord = None,
    eos: OptionalWord = None,
    tokenization: TokenizationName | None = None,
    keep_optimizer: bool = False,
) -> None:
    """Make a run from a Keras model, to continue training with `jaxlm train`.

    Compares the predictions of both. Loading .keras and .h5 never executes code. Loading a SavedModel does:
    open only trusted ones.

    Args:
      model: .keras, .h5 or .weights.h5 file, or SavedModel directory made by Keras.
      run: Run directory to make.
      vocabulary: The model's words in the order of its ids.
        A .json file has a Keras Tokenizer, the list of get_vocabulary(), or "words" and "counts".
        A text file has one word per line, with or without a tab and its count.
      unk: The vocabulary's token for unknown words. Default: <unk>, or that of Keras, if present.
      eos: The vocabulary's token for the end of a line. Default: <eos>, if present.
      tokenization: Tokenization of the model's texts. Default: that of the vocabulary file, or "words".
      keep_optimizer: Continue with the optimizer state (Adam, Adagrad or SGD) of a .keras file.
    """
    from convert.files.importing import import_run

    for line in import_run(model, run, vocabulary, unk, eos, tokenization, keep_optimizer):
        print(line)


@app.command
def verify(
    first: Model,
    second: Model,
    /,
    text: Path | None = None,
    vocabulary: Path | None = None,
    max_tokens: Annotated[int | None, shown(10_000)] = None,
) -> int:
    """Compare two models of any format. Exits with 1 if they differ.

    Args:
      first: Run directory, .keras, .h5, .weights.h5, .tflite or .onnx file, or SavedModel directory.
      second: The model to compare with, likewise.
      text: Text for a comparison of perplexities.
      vocabulary: vocabulary.json of the text, if neither model is a run.
      max_tokens: Maximum number of words from the beginning of the text; 0 for all.
    """
    from convert.checks.comparison import compare, compare_perplexities
    from convert.files.format_table import load_predictor
    from convert.files.importing import encode_text

    for name, value in (("vocabulary", vocabulary), ("max_tokens", max_tokens)):
        require(text is not None or value is None, name, "no value without `text`", value)
    max_tokens = 10_000 if max_tokens is None else max_tokens
    require(max_tokens >= 0, "max_tokens", "at least 0", max_tokens)
    ours, theirs = load_predictor(first), load_predictor(second)
    comparison = compare(ours, theirs)
    if text and comparison.differences:
        tokens = encode_text(text, vocabulary, first, second)
        if tokens.max() >= ours.vocab_size:
            raise InputError(
                f"Invalid `vocabulary`: expected that of the models, ids below {ours.vocab_size}."
                f" Received: id {tokens.max()}."
            )
        row, line = compare_perplexities(ours, theirs, tokens, max_tokens)
        comparison = comparison._replace(differences=(*comparison.differences, row))
        print(line)
    print(comparison)
    print("the models agree" if comparison.within_tolerance else "the models differ")
    return 0 if comparison.within_tolerance else 1


COMMANDS = (to_keras, from_keras, verify)


def run(args: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process; returns the exit code."""

    def command() -> int | None:
        check_command(sys.argv[1:] if args is None else args, COMMANDS)
        return app.cli(registry=RULES, prog="jaxlm-convert", description=__doc__, args=args)

    return run_command(command, *COMMANDS)


def main() -> None:
    """Entry point of the `jaxlm-convert` command."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="tensorflow")
    show_messages(*COMMANDS)
    sys.exit(run())
