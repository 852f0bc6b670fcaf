"""Converts third-party exceptions to `InputError`."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jaxlm.errors import InputError, reason

PROGRAMMING_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)


@contextmanager
def library_errors(path: Path, action: Literal["loaded", "written"]) -> Iterator[None]:
    """Converts the exceptions of Keras, h5py, TensorFlow and others on a damaged file or a full disk.

    A programming error in jaxlm or convert is raised unchanged.

    Raises:
      InputError: `path` cannot be loaded or written.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} cannot be {action}: it needs more memory than is available.") from error
    except Exception as error:
        if isinstance(error, PROGRAMMING_ERRORS) and _raised_by_project(error):
            raise
        raise InputError(f"{path} cannot be {action}: {reason(error)}") from error


def _raised_by_project(error: Exception) -> bool:
    """Whether a line of jaxlm or convert raised an exception, not a library function that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("convert", "jaxlm")
