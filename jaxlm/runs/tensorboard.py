"""Events of a run for TensorBoard."""

import logging
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.errors import MissingPackageError, require_packages

FLUSH_SECONDS = 10.0  # a flush waits for the disk

logger = logging.getLogger(__name__)


class Events:
    """Writes scalars in this thread: `tensorboardX.SummaryWriter` waits for ever once the disk of its thread is full.

    Args:
      directory: of the event files; a new one is added.
      first_step: TensorBoard drops events after it.
    """

    def __init__(self, directory: Path, first_step: int):
        self.package = _tensorboardx()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self.file: Any = self.package.record_writer.RecordWriter(str(path))
        self.flushed = time.monotonic()
        self._write(file_version="brain.Event:2")
        self._write(step=first_step + 1, session_log=self.package.proto.event_pb2.SessionLog(status=1))  # START

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of a step. If that fails, no more events are written: metrics.jsonl has them all."""
        summary = self.package.proto.summary_pb2.Summary
        scalars = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        try:
            self._write(step=step, summary=summary(value=scalars))
        except OSError as error:
            logger.warning("events for TensorBoard cannot be written (%s); training continues without them", error)
            with suppress(OSError):
                self.file.close()
            self.file = None

    def _write(self, **event: Any) -> None:
        if self.file is not None:
            self.file.write(self.package.proto.event_pb2.Event(wall_time=time.time(), **event).SerializeToString())
            if time.monotonic() > self.flushed + FLUSH_SECONDS:
                self.file.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        """Writes the rest of the events, if the disk has room."""
        if self.file is not None:
            try:
                self.file.close()
            except OSError as error:
                logger.warning("the last events for TensorBoard cannot be written (%s)", error)
            self.file = None


def open_events(directory: Path, first_step: int) -> Events | None:
    """Returns `Events`, or None with a message if tensorboardX is missing."""
    try:
        require_packages("tensorboard", "tensorboardX")
    except MissingPackageError as error:
        logger.info("No events for TensorBoard are written. %s", error)
        return None
    return Events(directory, first_step)


def _tensorboardx() -> Any:
    """Imports tensorboardX, which imports PyTorch wherever it is installed.

    PyTorch is hidden meanwhile, since that takes 1.5 s and 180 MB for nothing.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX.record_writer
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX
