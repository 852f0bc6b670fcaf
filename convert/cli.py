"""Convert between jaxlm runs and Keras models of every form, each conversion proven (also `python -m convert`)."""

import os
import sys
from pathlib import Path
from typing import Literal

import tyro

from jaxlm.cli import run_command
from jaxlm.errors import InputError

app = tyro.extras.SubcommandApp()


@app.command(name="to-keras")
def to_keras(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    format: Literal["keras", "h5", "weights.h5", "savedmodel", "tflite", "onnx"] | None = None,
    logits: bool = False,
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32",
    single_step: bool = False,
    last_only: bool = False,
    keep_optimizer: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a run's best model as an ordinary Keras model, and prove that it gives the same.

    What is written is read again and compared with the JAX model before it takes its name.

    Args:
      run: Run directory.
      out: File to write, ending in .keras, .h5, .weights.h5, .tflite or .onnx; a name without an ending
        becomes the directory of a TensorFlow SavedModel.
      format: The form, where the ending does not tell.
      logits: No softmax at the end.
      dtype: Of the weights: float16 and bfloat16 for .keras, int8 (dynamic range) for .tflite.
      single_step: One word and the states in, probabilities and the states out (.keras; .tflite always).
      last_only: The distribution of the next word alone, [batch, vocab] (.keras and .h5).
      keep_optimizer: Compiled, with the optimizer where the run's best model left it, to go on training in
        Keras (.keras).
      overwrite: Replace what is there.
    """
    from convert import export, runs
    from convert.keras_model import Form

    export.check_output(out, overwrite, format)
    form = Form(logits, last_only, single_step, "float32" if dtype == "int8" else dtype)
    parity = export.export(  # the run is given away, so that its memory can be let go of
        runs.load(run, keep_optimizer=keep_optimizer),
        out,
        form=form,
        format=format,
        int8=dtype == "int8",
        overwrite=overwrite,
    )
    files = (
        [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else list(out.parent.glob(out.name + "*"))
    )
    print(f"{parity}\n{out}: {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB, proven as above")


@app.command(name="from-keras")
def from_keras(
    model: tyro.conf.Positional[Path],
    run: tyro.conf.Positional[Path],
    /,
    vocabulary: Path,
    unk: str = "<unk>",
    eos: str = "<eos>",
    split: Literal["words", "whitespace"] = "words",
    keep_optimizer: bool = False,
) -> None:
    """Make a run of a Keras model, where `jaxlm train` goes on, and prove that it gives the same.

    Args:
      model: .keras, .h5 or .weights.h5 file, or SavedModel directory made by Keras.
      run: Run directory to make.
      vocabulary: The model's words in the order of its ids: a .json with "words" and "counts", or text with
        a word on each line, or a word, a tab and its count.
      unk: The word in it that stands for unknown words.
      eos: The word in it that stands for the end of a line.
      split: How text is cut, where the vocabulary does not say.
      keep_optimizer: Training goes on with the state of the optimizer (Adam or Adagrad) in a .keras file, and
        not with a fresh one.
    """
    from convert import import_keras

    for line in import_keras.import_run(model, run, vocabulary, unk, eos, split, keep_optimizer):
        print(line)


@app.command
def verify(
    first: tyro.conf.Positional[Path],
    second: tyro.conf.Positional[Path],
    /,
    text: Path | None = None,
    vocabulary: Path | None = None,
    max_tokens: int = 10_000,
) -> int:
    """Compare two models in any forms, runs among them; exit code 1 if they differ.

    Args:
      first: Run directory, .keras, .h5, .weights.h5, .tflite or .onnx file, or SavedModel directory.
      second: Another.
      text: Text whose perplexity is computed through both.
      vocabulary: vocabulary.json of the text, where neither model is a run.
      max_tokens: At most so many words of it, from its beginning; 0 is all.
    """
    from convert import export
    from convert import verify as parity_of
    from convert.import_keras import encode_text

    ours, theirs = export.subject(first), export.subject(second)
    parity = parity_of.compare(ours, theirs)
    if text and parity.differences:
        tokens = encode_text(text, vocabulary, first, second)
        if tokens.max() >= ours.vocab_size:
            raise InputError(f"The vocabulary of the text has more words than the models' {ours.vocab_size}.")
        row, line = parity_of.perplexities(ours, theirs, tokens, max_tokens)
        parity = parity._replace(differences=(*parity.differences, row))
        print(line)
    print(parity)
    print("they agree" if parity.holds else "they differ")
    return 0 if parity.holds else 1


def main() -> None:
    """Entry point of the `jaxlm-convert` command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's remarks on the machine
    sys.exit(run_command(lambda: app.cli(prog="jaxlm-convert", description=__doc__)))


if __name__ == "__main__":
    main()
