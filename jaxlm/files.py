"""Files and directories that are written whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.errors import InputError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a file or directory at; moves it into place at the end.

    After an error nothing is left behind, and what was at `path` is untouched. A directory may only
    replace an empty one.
    """
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    _remove(partial)  # left by a process that was killed
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with staged(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any], version: int) -> None:
    """Writes a JSON object with the number of its format, whole or not at all."""
    write_text(path, json.dumps({"format": version} | value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path, version: int | None = None) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: the file.
      version: the format number that `write_json` was given; None accepts a file of any origin.

    Raises:
      InputError: the file does not exist, does not hold a JSON object, or has another format number.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object. Received: {type(value).__name__}.")
    if version is not None:
        found = value.pop("format", None)
        if found != version:
            raise InputError(
                f"{path} was written by another version of jaxlm: expected format {version}. Received: {found!r}."
                " Read it with that version, or make it again with this one."
            )
    return value
