"""`InputError`, the error of every invalid argument, file or setting."""

import importlib.util


class InputError(ValueError):
    """An argument, a file or a setting is invalid. The message gives the reason, and usually a remedy.

    Names in backticks are arguments; the command line shows them as options: `num_sampled` becomes --num-sampled.
    """


def require(condition: bool, argument: str, expected: str, received: object) -> None:
    """Raises `InputError` about an argument unless `condition` holds."""
    if not condition:
        raise InputError(f"Invalid `{argument}`: expected {expected}. Received: {received!r}.")


class MissingPackageError(InputError, ImportError):
    """An optional package is not installed. The message names the extra of jaxlm that brings it."""


def require_packages(extra: str, *packages: str) -> None:
    """Raises `MissingPackageError` unless the packages of an extra of jaxlm are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"Not installed: {', '.join(missing)}. Run: pip install 'jaxlm[{extra}]'")


def shorten(word: str, size: int = 40) -> str:
    """Returns a word for a message, cut after `size` characters."""
    return word if len(word) <= size else f"{word[:size]}…"


def reason(error: BaseException) -> str:
    """Returns the first line of an error's text, for a message that names the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or repr(error)).splitlines()[0][:200]
