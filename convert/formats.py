"""The forms of exported models: written beside their final name, and renamed when they are proven."""

import gc
import importlib.util
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import h5py
import jax
import keras
import numpy as np
from tqdm import tqdm

from convert import keras_files, runs, verify
from convert.keras_model import PLAIN, Form, to_keras
from convert.optimizer import compile_model, same
from jaxlm.config import InputError

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
KERAS_2_KEYS = {  # of each layer, what Keras 2 and 3 both read; what is left out has its default in both
    "InputLayer": ("name", "dtype"),
    "Embedding": ("name", "input_dim", "output_dim"),
    "LSTM": ("name", "units", "return_sequences"),
    "Dense": ("name", "units", "activation", "use_bias"),
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
) -> verify.Parity:
    """Writes a model in the form of the output's ending, reads it again and compares it with the JAX model.

    Args:
      run: the model and its words.
      out: file, or directory of a SavedModel, to write.
      form: what the exported model gives.
      format: one of `Format`; None takes it from the ending.
      int8: whether the weights of a .tflite file are int8 (dynamic range).
      overwrite: whether what is there is replaced, where it is of the same form.

    Returns:
      The `Parity` through the file written.

    Raises:
      InputError: `out` cannot be written, a weight is not finite, or the model that is read again
        differs by more than `verify.TOLERANCES`; nothing is left then, and what was there stays.
    """
    name = check_output(out, overwrite, format)
    asked = {key for key, default in Form._field_defaults.items() if getattr(form, key) != default}
    asked |= {"int8"} if int8 else set()
    asked |= {"keep_optimizer"} if run.optimizer else set()
    if run.optimizer and asked & {"single_step", "dtype"}:
        raise InputError("Invalid --keep-optimizer: training goes on in float32 and over sequences.")
    if asked - OPTIONS[name]:
        option = sorted(asked - OPTIONS[name])[0].replace("_", "-")
        raise InputError(f"Invalid --{option}: a {name} model has no such form; it has {sorted(OPTIONS[name])}.")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.model))
    free = shutil.disk_usage(out.parent).free
    if free < size:  # HDF5 ends the process where a disk is full
        raise InputError(f"{out} cannot be written: it needs {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free.")
    ending = "" if name == "savedmodel" else f".{name}"
    bar = tqdm(total=2, desc=f"writing {size / 1e6:,.0f} MB", unit="step", leave=False, disable=size < LARGE)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory, bar:
        target = Path(directory) / (out.name.removesuffix(ending) + ending)
        with _writing(out):
            _writer(name, int8)(run, target, form)
        gc.collect()  # Keras models are cycles
        bar.set_description("reading it again and comparing")
        bar.update()
        parity = verify.compare(verify.of_language_model(run.model, "run"), subject(target, name))
        if not parity.holds:
            raise InputError(f"The exported model differs from the run, so it is not written: {parity}")
        if run.optimizer and not same(keras_files.read_optimizer(target, run.model.config), run.optimizer):
            raise InputError("The exported optimizer differs from that of the run, so it is not written.")
        _put_in_place(Path(directory), target, out)
    return parity


def _writer(name: str, int8: bool) -> Callable[[runs.Run, Path, Form], None]:
    if name == "savedmodel":
        from convert import saved_model

        return saved_model.write
    if name == "tflite":
        from convert import lite

        return lambda run, target, form: lite.write(run.model, target, logits=form.logits, int8=int8)
    if name == "onnx":
        from convert import onnx_model

        return lambda run, target, form: onnx_model.write(run.model, target, logits=form.logits)
    return {"keras": _write_keras, "h5": _write_h5, "weights.h5": _write_weights}[name]


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


def _write_keras(run: runs.Run, target: Path, form: Form) -> None:
    """Writes what `model.save` does, which would make two more copies of the weights in memory."""
    parts = target.with_name("parts")
    model = to_keras(run.model, form)
    if run.optimizer:
        compile_model(model, run.optimizer, run.model.config)
    model.save(parts, zipped=False)
    with zipfile.ZipFile(target, "w") as archive:  # stored, as Keras does
        for path in sorted(parts.iterdir()):
            if path.is_file():
                archive.write(path, path.name)
    shutil.rmtree(parts)


def _write_h5(run: runs.Run, target: Path, form: Form) -> None:
    """Writes a whole model that Keras 3 and Keras 2 both load: its config is in words that both know."""
    model = keras.Sequential(to_keras(run.model, form).layers, name="language_model")
    model.save(target, include_optimizer=False)
    layers = [
        {
            "class_name": "InputLayer",
            "config": {"name": "token_ids", "dtype": "int32", "batch_input_shape": [None, None]},
        }
    ]
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        layers.append({"class_name": kind, "config": {key: config[key] for key in KERAS_2_KEYS[kind]}})
    config = {"class_name": "Sequential", "config": {"name": "language_model", "layers": layers}}
    with h5py.File(target, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)


def _write_weights(run: runs.Run, target: Path, form: Form) -> None:
    keras.Sequential(to_keras(run.model, form).layers).save_weights(target)


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


def subject(path: Path, format: str | None = None) -> verify.Subject:
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
        return verify.of_language_model(runs.load(path).model, path.name)
    name = format_of(path, format)
    _check_installed(name)
    with keras_files.reading(path):
        found = _subject(path, name)

    def predict(ids: np.ndarray) -> verify.Predictions:
        with keras_files.reading(path):  # what is damaged may load, and then not run
            return found.predict(ids)

    return found._replace(predict=predict)


def _subject(path: Path, name: str) -> verify.Subject:
    if name == "savedmodel":
        from convert import saved_model

        return saved_model.subject(path)
    keras_files.check_file(path)
    if name == "tflite":
        from convert import lite

        return lite.subject(path)
    if name == "onnx":
        from convert import onnx_model

        return onnx_model.subject(path)
    return keras_files.load_keras(path)
