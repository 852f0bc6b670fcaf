"""Errors of other libraries, turned into `InputError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jaxlm.errors import InputError, reason


@contextmanager
def library_errors(path: Path, action: Literal["loaded", "written"]) -> Iterator[None]:
    """Turns whatever Keras, h5py, TensorFlow and others raise on a damaged file or a full disk into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} cannot be {action}: it needs more memory than is available.") from error
    except Exception as error:
        raise InputError(f"{path} cannot be {action}: {reason(error)}") from error
