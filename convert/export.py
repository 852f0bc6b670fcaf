"""The forms of exported models: written beside their final name, and renamed when they are proven."""

import gc
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np
from tqdm import tqdm

from convert import comparison, keras_reader, keras_writer, runs
from convert.keras_model import PLAIN, Form
from convert.optimizer import same
from jaxlm.errors import InputError

Format = Literal["keras", "h5", "weights.h5", "savedmodel", "tflite", "onnx"]
LARGE = 500e6  # bytes of a model from which on the user is told what is being done
OPTIONS = {  # what each form can be but for the plain one
    "keras": {"logits", "last_only", "single_step", "dtype", "keep_optimizer"},
    "h5": {"logits", "last_only"},
    "weights.h5": set(),
    "savedmodel": {"logits"},
    "tflite": {"logits", "int8"},
    "onnx": {"logits"},
}


def format_of(path: Path, given: str | None = None) -> str:
    """Returns the form of a path by its ending, or the given one.

    Raises:
      InputError: the ending says nothing.
    """
    if given:
        return given
    for name in ("weights.h5", "keras", "h5", "tflite", "onnx"):
        if path.name.endswith(f".{name}"):
            return name
    if path.suffix == "" or (path / "saved_model.pb").exists():
        return "savedmodel"
    raise InputError(
        f"Invalid output {path}: expected a name that ends in .keras, .h5, .weights.h5, .tflite or .onnx, or in"
        f" nothing for a SavedModel directory; or give --format, one of {get_args(Format)}."
    )


def export(
    run: runs.Run,
    out: Path,
    *,
    form: Form = PLAIN,
    format: str | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> comparison.Parity:
    """Writes a model in the form of the output's ending, reads it again and compares it with the JAX model.

    Args:
      run: the model and its words; let go of before the file is read again, so that a caller who keeps no other
        reference needs the memory of one model at a time.
      out: file, or directory of a SavedModel, to write.
      form: what the exported model gives.
      format: one of `Format`; None takes it from the ending.
      int8: whether the weights of a .tflite file are int8 (dynamic range).
      overwrite: whether what is there is replaced, where it is of the same form.

    Returns:
      The `Parity` through the file written.

    Raises:
      InputError: `out` cannot be written, a weight is not finite, or the model that is read again
        differs by more than `comparison.TOLERANCES`; nothing is left then, and what was there stays.
    """
    name = check_output(out, overwrite, format)
    asked = {key for key, default in Form._field_defaults.items() if getattr(form, key) != default}
    asked |= {"int8"} if int8 else set()
    asked |= {"keep_optimizer"} if run.optimizer else set()
    if run.optimizer and asked & {"single_step", "dtype"}:
        raise InputError("Invalid --keep-optimizer: training goes on in float32 and over sequences.")
    if run.optimizer and run.model.config.tied:
        raise InputError(
            "Invalid --keep-optimizer: a tied model's rows are two tables in Keras, with two optimizers' states."
        )
    if asked - OPTIONS[name]:
        option = sorted(asked - OPTIONS[name])[0].replace("_", "-")
        raise InputError(f"Invalid --{option}: a {name} model has no such form; it has {sorted(OPTIONS[name])}.")
    config, optimizer = run.model.config, run.optimizer
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((run.model, optimizer.slots if optimizer else {})))
    free = shutil.disk_usage(out.parent).free
    if free < size:  # told before anything is done
        raise InputError(f"{out} cannot be written: it needs {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free.")
    ending = "" if name == "savedmodel" else f".{name}"
    bar = tqdm(total=2, desc=f"writing {size / 1e6:,.0f} MB", unit="step", leave=False, disable=size < LARGE)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory, bar:
        target = Path(directory) / (out.name.removesuffix(ending) + ending)
        ours = comparison.remembered(comparison.of_language_model(run.model, "run"))
        with _writing(out):
            _writer(name, int8)(run, target, form)
        del run  # so that its memory serves the model that is read again
        gc.collect()  # Flax and Keras models are cycles
        bar.set_description("reading it again and comparing")
        bar.update()
        parity = comparison.compare(ours, subject(target, name))
        if not parity.holds:
            raise InputError(f"The exported model differs from the run, so it is not written: {parity}")
        if optimizer and not same(keras_reader.read_optimizer(target, config), optimizer):
            raise InputError("The exported optimizer differs from that of the run, so it is not written.")
        _put_in_place(Path(directory), target, out)
    return parity


def _writer(name: str, int8: bool) -> Callable[[runs.Run, Path, Form], None]:
    if name == "savedmodel":
        from convert import saved_model

        return saved_model.write
    if name == "tflite":
        from convert import tflite

        return lambda run, target, form: tflite.write(run.model, target, logits=form.logits, int8=int8)
    if name == "onnx":
        from convert import onnx_model

        return lambda run, target, form: onnx_model.write(run.model, target, logits=form.logits)
    writers = {"keras": keras_writer.write_keras, "h5": keras_writer.write_h5, "weights.h5": keras_writer.write_weights}
    return writers[name]


class _writing:
    """Turns what libraries raise on a full disk into an `InputError`."""

    def __init__(self, out: Path):
        self.out = out

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = (str(error) or repr(error)).strip().splitlines()[0][:200]
            raise InputError(f"{self.out} cannot be written: {reason}") from error


def _put_in_place(directory: Path, target: Path, out: Path) -> None:
    """Renames what was written, and what lies beside it (an ONNX file's data), to its final name."""
    if target.is_dir() and out.is_dir():
        out.rename(directory / "old")
    for path in sorted(directory.iterdir(), key=lambda path: path == target):  # the model itself last
        if path.name.startswith(target.name):
            path.replace(out.with_name(out.name + path.name.removeprefix(target.name)))


def check_output(out: Path, overwrite: bool, format: str | None = None) -> str:
    """Raises what would stop a conversion at its end, before it begins; returns the form's name.

    Raises:
      InputError: the ending, the directory or an existing file stands in the way.
    """
    name = format_of(out, format)
    _check_installed(name)
    if not out.parent.is_dir():
        raise InputError(f"Invalid output {out}: the directory {out.parent} does not exist.")
    if out.is_dir() and not (name == "savedmodel" and (out / "saved_model.pb").is_file()):
        raise InputError(f"Invalid output {out}: it is a directory.")
    if out.is_file() and name == "savedmodel":
        raise InputError(f"Invalid output {out}: it is a file, and a SavedModel is a directory.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; replace it with --overwrite, or name another.")
    return name


def _check_installed(name: str) -> None:
    if name == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        raise InputError("The onnx form needs onnx and onnxruntime: pip install 'jaxlm[onnx]'.")


def subject(path: Path, format: str | None = None) -> comparison.Subject:
    """Reads a model of any form for comparison.

    Args:
      path: a run directory, or what `export` writes.
      format: one of `Format` where the name does not tell.

    Raises:
      InputError: there is nothing, or it is damaged, unsafe or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir() and not (path / "saved_model.pb").exists() and format is None and not path.suffix:
        return comparison.of_language_model(runs.load(path).model, path.name)
    name = format_of(path, format)
    _check_installed(name)
    with keras_reader.reading(path):
        found = _subject(path, name)

    def predict(ids: np.ndarray) -> comparison.Predictions:
        with keras_reader.reading(path):  # what is damaged may load, and then not run
            return found.predict(ids)

    return found._replace(predict=predict)


def _subject(path: Path, name: str) -> comparison.Subject:
    if name == "savedmodel":
        from convert import saved_model

        return saved_model.subject(path)
    keras_reader.check_file(path)
    if name == "tflite":
        from convert import tflite

        return tflite.subject(path)
    if name == "onnx":
        from convert import onnx_model

        return onnx_model.subject(path)
    return keras_reader.load_keras(path)
