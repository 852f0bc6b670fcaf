"""Files of Keras models: written beside their final name, and renamed when they are proven."""

import tempfile
from pathlib import Path

import keras

from convert import keras_model, verify
from jaxlm.config import InputError
from jaxlm.model import LanguageModel


def save_keras(model: LanguageModel, out: Path, *, overwrite: bool = False) -> verify.Parity:
    """Writes a `.keras` file, loads it again and compares it with the JAX model.

    Args:
      model: the language model.
      out: file to write, ending in `.keras`.
      overwrite: whether a file that is there is replaced.

    Returns:
      The `Parity` through the saved file.

    Raises:
      InputError: `out` cannot be written, a weight is not finite, or the loaded model differs by
        more than `verify.TOLERANCE`; no file is left then, and one that was there stays.
    """
    check_output(out, overwrite)
    exported = keras_model.from_language_model(model)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory:
        file = Path(directory) / out.name
        exported.save(file)
        del exported
        parity = verify.compare(model, load_keras(file))
        if not parity.holds:
            raise InputError(f"The exported model differs from the run, so it is not written: {parity}.")
        file.replace(out)
    return parity


def check_output(out: Path, overwrite: bool) -> None:
    """Raises what would stop a conversion at its end, before it begins.

    Raises:
      InputError: the ending, the directory or an existing file stands in the way.
    """
    if out.suffix != ".keras":
        raise InputError(f"Invalid output {out}: expected a name that ends in .keras.")
    if not out.parent.is_dir():
        raise InputError(f"Invalid output {out}: the directory {out.parent} does not exist.")
    if out.is_dir():
        raise InputError(f"Invalid output {out}: it is a directory.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; replace it with --overwrite, or name another file.")


def load_keras(path: Path) -> keras.Model:
    """Loads a `.keras` file with `safe_mode=True`, so that no code in it is run.

    Raises:
      InputError: the file is missing, damaged, or no Keras model.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; expected a Keras model (.keras).")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise what they please on a damaged file
        raise InputError(f"{path} cannot be loaded as a Keras model: {str(error).splitlines()[0]}") from error
