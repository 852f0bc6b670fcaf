"""The ZIP archive of a `.keras` file: checks it, and reads its weights in place."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import h5py

from jaxlm.errors import InputError

WEIGHTS = "model.weights.h5"
MAX_JSON_BYTES = 1 << 24


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[Any, Any, h5py.File]]:
    """Opens a `.keras` file; yields its config, the version of Keras that wrote it, and its weights.

    Raises:
      InputError: a member points outside the archive, is too large or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        _check_archive(path, archive)
        config = json.loads(archive.read("config.json"))
        metadata = json.loads(archive.read("metadata.json"))
        version = metadata.get("keras_version") if isinstance(metadata, dict) else None
        with open_weights(path, archive) as member, h5py.File(member, "r") as file:
            yield config, version, file


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"{path} is not a Keras model: its member {name!r} points outside the archive.")
    if sum(info.file_size for info in archive.infolist() if info.filename.endswith(".json")) > MAX_JSON_BYTES:
        raise InputError(f"{path} is not a Keras model: its JSON files are larger than {MAX_JSON_BYTES:,} bytes.")
    damaged = archive.testzip()  # HDF5 has no checksums, but the archive does
    if damaged:
        raise InputError(f"{path} is damaged: its member {damaged} has the wrong checksum.")


def open_weights(path: Path, archive: zipfile.ZipFile) -> IO[bytes] | io.RawIOBase:
    """Opens the weights as a file. Keras stores them uncompressed; other programs may compress them."""
    info = archive.getinfo(WEIGHTS)
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.open(info)
    if info.file_size != info.compress_size:
        raise InputError(f"{path} is damaged: the sizes of its uncompressed weights differ.")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return FileSlice(path, info.header_offset + 30 + name_length + extra_length, info.file_size)


class FileSlice(io.RawIOBase):
    """A slice of a file, as a file. Unlike a member opened by `zipfile`, it seeks without reading."""

    def __init__(self, path: Path, start: int, size: int):
        self.file, self.start, self.size, self.position = path.open("rb", buffering=0), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fills the whole buffer or raises, since h5py does not check how much was read."""
        rest = memoryview(buffer).cast("B")
        if len(rest) > self.size - self.position:
            raise EOFError("its weights end too early")
        self.file.seek(self.start + self.position)
        self.position += len(rest)
        while rest:
            count = self.file.readinto(rest)  # the operating system reads at most 2 GB at a time
            if not count:
                raise EOFError("its weights end too early")
            rest = rest[count:]
        return memoryview(buffer).nbytes

    def close(self) -> None:
        self.file.close()
        super().close()
