"""Atomic writes of files and directories, and checksums."""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.errors import InputError, reason

CHECKSUMS_FILE = "checksums.json"
CHECKSUMS_FORMAT = 1

PathLike = str | os.PathLike[str]


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or directory next to `path`; moves it into place at the end.

    After an error nothing is left behind, and what was at `path` is untouched. A directory may only
    replace an empty one.

    Raises:
      InputError: the disk is full, or `path` cannot be written for another reason.
    """
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    try:
        _remove(partial)  # left by a process that was killed
        yield partial
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            _remove(partial)
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be written: {reason(error)}") from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_new_directory(directory: Path) -> None:
    """Raises `InputError` unless nothing, or an empty directory, is at the path of a directory to make."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} already exists and is not an empty directory; remove it, or choose another one.")


def require_output_file(path: Path) -> None:
    """Raises `InputError` unless `staged` can put a file at a path: call it before the file is computed."""
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path} cannot be written: the directory {path.parent} does not exist.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be written: it is {'a directory' if path.is_dir() else 'no regular file'}.")


def readable_size(size: float) -> str:
    """Formats a number of bytes.

    >>> readable_size(31_600), readable_size(2_500_000)
    ('31.6 kB', '2.5 MB')
    """
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with staged(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # of file names, which may be any bytes


def write_json(path: Path, value: dict[str, Any], version: int) -> None:
    """Writes a JSON object with the number of its format and a checksum, atomically."""
    value = {"format": version, "checksum": _json_checksum(value)} | value
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path, version: int | None = None) -> dict[str, Any]:
    """Reads a JSON object, of the format number that `write_json` was given; None accepts a file of any origin.

    Raises:
      InputError: the file does not exist, does not hold a JSON object, has another format number, or was
        changed since `write_json` wrote it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory; expected a file.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object. Received: {type(value).__name__}.")
    if version is not None:
        found, checksum = value.pop("format", None), value.pop("checksum", None)
        if found != version:
            raise InputError(
                f"{path} was written by another version of jaxlm: expected format {version}. Received: {found!r}."
                " Read it with that version, or make it again with this one."
            )
        if checksum != _json_checksum(value):
            raise InputError(f"{path} is damaged: its checksum is wrong. Restore it from a copy, or make it again.")
    return value


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Reads an array from a `.npy` file.

    Raises:
      InputError: the file does not exist, or does not hold an array.
    """
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except Exception as error:  # a damaged header ends in whatever Python's own parser raises
        raise InputError(f"{path} is not a NumPy array, or is damaged ({type(error).__name__}).") from error


def _json_checksum(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def write_checksums(directory: Path) -> None:
    """Writes the size and the CRC-32 of every file below a directory to checksums.json in it."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE]
    with ThreadPoolExecutor() as pool:
        sums = dict(zip([str(path.relative_to(directory)) for path in paths], pool.map(_checksum, paths), strict=True))
    write_json(directory / CHECKSUMS_FILE, {"files": sums}, CHECKSUMS_FORMAT)


def verify_checksums(directory: Path, *names: str) -> None:
    """Checks files below a directory, by default all of them, against its checksums.json.

    Raises:
      InputError: a file is missing, or was changed; names it.
    """
    files = read_json(directory / CHECKSUMS_FILE, CHECKSUMS_FORMAT)["files"]
    files = {name: files[name] for name in names} if names else files
    for name, (size, _) in files.items():  # first the sizes, which take no time
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing.")
        if path.stat().st_size != size:
            raise InputError(f"{path} is damaged: it has {path.stat().st_size:,} bytes, expected {size:,}.")
    with ThreadPoolExecutor() as pool:
        found = pool.map(_checksum, [directory / name for name in files])
        for (name, expected), checksum in zip(files.items(), found, strict=True):
            if list(checksum) != list(expected):
                raise InputError(f"{directory / name} is damaged: its checksum is wrong.")


def _checksum(path: Path) -> tuple[int, str]:
    """Returns the size and the CRC-32 of a file."""
    size, checksum = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, f"{checksum:08x}"
