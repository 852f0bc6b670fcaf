"""`Progress`: counters of a run, saved with the arrays of a checkpoint."""

from pathlib import Path
from typing import NamedTuple

import jax

from jaxlm.files import read_json, verify_checksums, write_json

PROGRESS_FILE, PROGRESS_FORMAT = "progress.json", 1


class Progress(NamedTuple):
    """Progress of a run, and the devices that saved it."""

    seconds: float  # spent on training steps
    valid_loss: float | None = None  # exact; None between evaluations
    valid_losses: tuple[float, ...] = ()  # of all evaluations before averaging begins, with `average_patience`
    losses: tuple[float, ...] = ()  # of steps since the last line of metrics.jsonl
    logged: tuple[int, float] = (0, 0.0)  # steps and seconds at that line
    jax_version: str = jax.__version__
    mesh: tuple[int, int] = (1, 1)  # devices along `data` and along `vocab`
    num_processes: int = 1
    device: str = ""  # their kind


def write_progress(directory: Path, progress: Progress) -> None:
    """Writes progress.json into the directory of a checkpoint."""
    write_json(directory / PROGRESS_FILE, progress._asdict(), PROGRESS_FORMAT)


def read_progress(directory: Path) -> Progress:
    """Reads progress.json, after checking that it was not changed."""
    verify_checksums(directory, PROGRESS_FILE)
    value = read_json(directory / PROGRESS_FILE, PROGRESS_FORMAT)
    tuples = {name: tuple(entry) for name, entry in value.items() if isinstance(entry, list)}
    return Progress(**value | tuples)
