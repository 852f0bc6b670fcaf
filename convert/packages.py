"""Optional packages: imported without start-up messages, or refused with the extra that installs them."""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from jaxlm.errors import MissingPackageError


def import_optional(extra: str, *packages: str) -> None:
    """Imports packages that an extra of jaxlm installs.

    Raises:
      MissingPackageError: a package, or one of its dependencies, is not installed.
    """
    if all(package in sys.modules and sys.modules[package] is not None for package in packages):
        return
    try:
        with _quiet_stderr():
            for package in packages:
                importlib.import_module(package)
            if "tensorflow" in sys.modules:  # otherwise its first operation reports missing GPUs
                sys.modules["tensorflow"].config.list_physical_devices()
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise MissingPackageError(f"Not installed: {name}. Run: pip install 'jaxlm[{extra}]'") from error


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discards output to stderr, except after an error.

    TensorFlow's C++ code writes to the file descriptor, regardless of TF_CPP_MIN_LOG_LEVEL.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            yield
        except ModuleNotFoundError:
            raise
        except BaseException:
            messages.seek(0)
            os.write(stderr, messages.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
