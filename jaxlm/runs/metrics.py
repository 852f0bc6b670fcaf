"""The metrics of a run: metrics.jsonl, one JSON object with a step and values per line, and events for TensorBoard."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.files import write_text
from jaxlm.parallel.processes import is_first
from jaxlm.runs.tensorboard import open_events

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes the metrics of a run; of several processes, the first one does.

    Args:
      directory: of the run.
      first_step: at which training starts or resumes; later metrics, of a process that was killed, are removed.
    """

    def __init__(self, directory: Path, first_step: int):
        self.directory, self.writes = directory, is_first()
        self.unwritten: list[tuple[int, dict[str, float]]] = []
        if self.writes:
            drop_metrics_after(directory, first_step)
        self.events = open_events(directory / "tensorboard", first_step) if self.writes else None

    def add(self, step: int, **values: float) -> None:
        """Writes values to metrics.jsonl and TensorBoard; if that fails, they are written with the next ones."""
        if not self.writes:
            return
        self.unwritten.append((step, values))
        try:
            append_metrics(self.directory, [{"step": step, **values} for step, values in self.unwritten])
        except OSError as error:
            logger.warning("metrics cannot be written (%s); training continues, and tries again", error)
            return
        if self.events:
            for row in self.unwritten:
                self.events.add(*row)
        self.unwritten = []

    def close(self) -> None:
        """Closes the file of TensorBoard."""
        if self.events:
            self.events.close()


def append_metrics(directory: Path, rows: list[dict[str, float]]) -> None:
    """Adds lines to metrics.jsonl: all of them, or none and an `OSError`."""
    path = directory / METRICS_FILE
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)  # or the next line would join one that was cut off
        raise


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, without damaged lines and a last line that was cut off."""
    path = directory / METRICS_FILE
    rows = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end was cut off, or is empty
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and "step" in row and {*map(type, row.values())} <= {int, float}:
            rows.append(row)
        else:
            logger.warning("%s: line %d is damaged and left out", path, number)
    return rows


def drop_metrics_after(directory: Path, step: int) -> None:
    """Removes the lines after a step: those of a killed run after its last checkpoint, which will be written again."""
    rows = [row for row in read_metrics(directory) if row["step"] <= step]
    write_text(directory / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
