"""The table of formats: the modules that write and read each one, its options, and the packages it needs."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from convert.checks.predictor import Predictions, Predictor, language_model_predictor
from convert.errors import library_errors
from convert.files import run_directory
from convert.keras_models.reader import check_file
from convert.options import FormatName
from convert.packages import import_optional
from jaxlm.data.vocabulary import VOCABULARY_FILE
from jaxlm.errors import InputError


class Format(NamedTuple):
    """A format. Its modules are imported on first use, since TensorFlow and ONNX are slow to import."""

    writer: str  # module of convert with `write(run, target, options)`
    reader: str  # module of convert with `load_predictor(path)`
    options: frozenset[str] = frozenset()  # supported fields of `ExportOptions`, besides `dtype`
    dtypes: tuple[str, ...] = ("float32",)
    keeps_optimizer: bool = False
    extra: str = "keras"  # of jaxlm, which installs `packages`
    packages: tuple[str, ...] = ("keras",)

    @property
    def write_module(self) -> ModuleType:
        """The module that writes it."""
        return importlib.import_module(f"convert.{self.writer}")

    @property
    def read_module(self) -> ModuleType:
        """The module that reads it."""
        return importlib.import_module(f"convert.{self.reader}")


FORMATS: dict[FormatName, Format] = {
    "keras": Format(
        "keras_models.writer",
        "keras_models.reader",
        frozenset({"logits", "last_only", "single_step"}),
        ("float32", "float16", "bfloat16"),
        keeps_optimizer=True,
    ),
    "h5": Format("keras_models.writer", "keras_models.reader", frozenset({"logits", "last_only"})),
    "weights.h5": Format("keras_models.writer", "keras_models.reader"),
    "savedmodel": Format(
        "formats.saved_model", "formats.saved_model", frozenset({"logits"}), packages=("keras", "tensorflow")
    ),
    "tflite": Format(
        "formats.tflite",
        "formats.tflite",
        frozenset({"logits"}),
        ("float32", "int8"),
        packages=("keras", "tensorflow"),
    ),
    "onnx": Format(
        "formats.onnx_model",
        "formats.onnx_model",
        frozenset({"logits"}),
        extra="onnx",
        packages=("onnx", "onnxruntime"),
    ),
}
EXTENSIONS: tuple[FormatName, ...] = ("weights.h5", "keras", "h5", "tflite", "onnx")  # a SavedModel has none


def format_of(path: Path, format: FormatName | None = None, *, is_output: bool = False) -> FormatName:
    """Returns the name of a model's format: `format`, or that of its file extension.

    Args:
      path: of a model.
      format: name of the format; None takes it from the file extension.
      is_output: whether the model is to be written, for the error message.

    Raises:
      InputError: the file extension is unknown, or a package is missing.
    """
    name = format or next((name for name in EXTENSIONS if path.name.endswith(f".{name}")), None)
    name = "h5" if name is None and path.suffix == ".hdf5" else name
    if name is None and (path.suffix == "" or (path / "saved_model.pb").exists()):
        name = "savedmodel"
    if name is None or name not in FORMATS:
        if is_output:
            raise InputError(
                f"{path}: expected the extension .keras, .h5, .weights.h5, .tflite or .onnx, or none for a SavedModel"
                f" directory; or give `format`, one of {tuple(FORMATS)}."
            )
        raise InputError(
            f"{path} has no known format: expected a run directory, a .keras, .h5, .weights.h5, .tflite or .onnx file,"
            " or a SavedModel directory."
        )
    import_optional(FORMATS[name].extra, *FORMATS[name].packages)
    return name


def load_predictor(path: Path, format: FormatName | None = None) -> Predictor:
    """Reads a model of any format for comparison.

    Args:
      path: a run directory, or a file or directory that `export` writes.
      format: name of the format; None takes it from the file extension.

    Raises:
      InputError: the path does not exist, or is damaged, unsafe or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    is_run = (path / VOCABULARY_FILE).is_file() or (path.is_dir() and not path.suffix)
    if is_run and format is None and not (path / "saved_model.pb").exists():
        return language_model_predictor(run_directory.load(path).model, path.name)
    name = format_of(path, format)
    if name != "savedmodel":
        check_file(path)
    with library_errors(path, "loaded"):
        predictor = FORMATS[name].read_module.load_predictor(path)

    def predict(ids: np.ndarray) -> Predictions:
        with library_errors(path, "loaded"):  # a damaged model may load, and fail only when it runs
            return predictor.predict(ids)

    return predictor._replace(predict=predict)
