"""Exports a model: writes it under a temporary name, reloads it, checks it against JAX, and moves it into place."""

import gc
import shutil
import tempfile
from pathlib import Path

import jax
from tqdm import tqdm

from convert.checks.comparison import TOLERANCES, Comparison, compare, precomputed
from convert.checks.predictor import Predictor, language_model_predictor
from convert.errors import library_errors
from convert.files.format_table import FORMATS, format_of, load_predictor
from convert.keras_models import reader
from convert.keras_models.source_json import read_structure_of
from convert.options import DEFAULT_OPTIONS, ExportOptions, FormatName
from convert.weights.optimizer_state import states_equal
from convert.weights.run_model import RunModel
from jaxlm.errors import InputError
from jaxlm.files import readable_size

LARGE = 500e6  # bytes of a model; larger ones get a progress bar


def export(
    run: RunModel,
    out: Path,
    options: ExportOptions = DEFAULT_OPTIONS,
    *,
    format: FormatName | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Writes a model, reloads it, and checks it against the JAX model before moving it into place.

    Args:
      run: the model and its words. It is released before the file is reloaded; a caller that keeps no other
        reference needs the memory of only one model.
      out: file to write, or directory of a SavedModel.
      options: inputs, outputs and data type of the exported model.
      format: name of the format; None takes it from the file extension of `out`.
      overwrite: whether to replace an existing file of the same format.

    Returns:
      The `Comparison` of the written model with the run's.

    Raises:
      InputError: `out` cannot be written, the format lacks an option, a weight is not finite, or the reloaded
        model differs by more than `comparison.TOLERANCES`. In each case nothing is written, and an existing
        file stays as it is.
    """
    name = check_output(out, overwrite, format)
    check_options(name, options, run)
    config, optimizer, size = run.model.config, run.optimizer, check_space(run, out)
    # Keras chooses the format by the extension; an ONNX file names its data file, so it has its final name
    extension = "" if name in ("savedmodel", "onnx") else f".{name}"
    bar = tqdm(
        total=2, desc=f"writing {size / 1e6:,.0f} MB", unit="step", leave=False, disable=True if size < LARGE else None
    )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory, bar:
        target = Path(directory) / (out.name.removesuffix(extension) + extension)
        expected = precomputed(_predictor(run, options))
        with library_errors(out, "written"):
            FORMATS[name].write_module.write(run, target, options)
        del run  # frees its memory for the reloaded model
        gc.collect()  # Flax and Keras models are reference cycles
        bar.set_description("reloading and comparing")
        bar.update()
        # a file of weights alone lacks the activations, so it is compared with those of the model
        written = reader.load_predictor(target, config) if name == "weights.h5" else load_predictor(target, name)
        comparison = compare(expected, written)
        if not comparison.within_tolerance:
            problem = "The exported model differs from the run, so it is not written"
            raise InputError(f"{problem}: {comparison.summary}{_advice(name, options)}.")
        if optimizer and not states_equal(reader.read_optimizer(target, config), optimizer):
            raise InputError("The exported optimizer state differs from the run's, so it is not written.")
        _move_into_place(target, out)
    return comparison


def _advice(name: FormatName, options: ExportOptions) -> str:
    """Returns the end of an error message: the data types of a format that keep more digits, if there are any."""
    closer = [dtype for dtype in FORMATS[name].dtypes if TOLERANCES[dtype] < TOLERANCES[options.dtype]]
    return f" with {options.dtype}; use `dtype` {' or '.join(closer)}, which keeps more digits" if closer else ""


def _predictor(run: RunModel, options: ExportOptions) -> Predictor:
    """Returns the run's `Predictor`, with the fixed shape of its source model, if that is rebuilt."""
    predictor = language_model_predictor(run.model, "run")
    if run.description is None or options != DEFAULT_OPTIONS:
        return predictor
    structure = read_structure_of(run.description)
    return predictor._replace(first_id=int(structure.mask_zero), shape=structure.shape)


def check_output(out: Path, overwrite: bool, format: FormatName | None = None) -> FormatName:
    """Checks, before anything is computed, that an output can be written; returns the name of its format.

    Raises:
      InputError: the file extension is unknown, the directory does not exist, or the output exists already.
    """
    name = format_of(out, format, is_output=True)
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: the directory {out.parent} does not exist.")
    if out.is_dir() and not (name == "savedmodel" and (out / "saved_model.pb").is_file()):
        raise InputError(f"{out} cannot be written: it is a directory.")
    if out.is_file() and name == "savedmodel":
        raise InputError(f"{out} cannot be written: it is a file, but a SavedModel is a directory.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} already exists; replace it with `overwrite`, or choose another name.")
    return name


def check_options(name: FormatName, options: ExportOptions, run: RunModel) -> None:
    """Checks that a format supports the given options, and the optimizer of the run.

    Raises:
      InputError: it does not; the message lists the supported options.
    """
    format, label = FORMATS[name], "a SavedModel" if name == "savedmodel" else f".{name}"
    for option in ExportOptions._fields:
        if option != "dtype" and getattr(options, option) and option not in format.options:
            available = ", ".join(f"`{each}`" for each in sorted(format.options)) or "none"
            raise InputError(f"`{option}` is not available for {label}. Available options: {available}.")
    if options.dtype not in format.dtypes:
        *others, last = format.dtypes
        available = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"`dtype` {options.dtype} is not available for {label}; use {available}.")
    if run.optimizer is None:
        return
    if not format.keeps_optimizer:
        raise InputError(f"`keep_optimizer` is not available for {label}; use .keras.")
    if options.single_step or options.dtype != "float32":
        raise InputError("`keep_optimizer` needs float32 and no `single_step`: Keras trains on sequences, in float32.")
    if run.model.config.tied:
        raise InputError(
            "`keep_optimizer` is not available for a tied model: Keras would train its rows as two tables."
        )


def check_space(run: RunModel, out: Path) -> int:
    """Checks that the disk has space for a run's model; returns its size in bytes.

    Raises:
      InputError: it has too little.
    """
    slots = run.optimizer.slots if run.optimizer else {}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((run.model, slots)))
    free = shutil.disk_usage(out.parent).free
    if free < size:
        raise InputError(
            f"{out} cannot be written: it needs {readable_size(size)}, but {readable_size(free)} are free."
        )
    return size


def _move_into_place(target: Path, out: Path) -> None:
    """Renames the written model, and the data file of an ONNX model, to their final names."""
    directory = target.parent
    if target.is_dir() and out.is_dir():
        out.rename(directory / f".{target.name}")  # a name that does not begin with that of the target
    for path in sorted(directory.iterdir(), key=lambda path: path == target):  # the model itself last
        if path.name.startswith(target.name):
            path.replace(out.with_name(out.name + path.name.removeprefix(target.name)))
