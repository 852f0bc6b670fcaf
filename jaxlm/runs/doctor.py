"""`jaxlm doctor`: checks of this machine, and of the files of a run or a corpus."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from jaxlm.data.corpus import fingerprints, load_corpus
from jaxlm.data.vocabulary import VOCABULARY_FILE
from jaxlm.errors import InputError
from jaxlm.files import CHECKSUMS_FILE, verify_checksums
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import CONFIG_FILE, RunConfig, load_config, load_vocabulary
from jaxlm.runs.keras_files import KERAS_IDS_FILE, KERAS_MODEL_FILE, read_keras_ids, read_keras_model
from jaxlm.runs.memory import available_bytes
from jaxlm.runs.metrics import METRICS_FILE, read_metrics
from jaxlm.runs.unused_gpu import unused_gpu

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "keras", "tensorflow")


class Finding(NamedTuple):
    """One line of the table."""

    subject: str
    result: str
    is_good: bool = True


def examine(path: Path | None = None) -> Iterator[Finding]:
    """Yields findings about the machine and, if a path is given, about the run or the corpus there."""
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed", is_good=package in ("keras", "tensorflow"))
    yield Finding("processor", _processor())
    devices = ", ".join(f"{device.platform}: {device.device_kind}" for device in jax.devices())
    advice = unused_gpu()
    yield Finding("devices", f"{devices}. {advice}" if advice else devices, is_good=not advice)
    yield Finding("free memory", f"{available_bytes() / 1e9:.1f} GB")
    yield Finding("free disk", f"{shutil.disk_usage(_existing(path or Path.cwd())).free / 1e9:.1f} GB")
    if path is None:
        return
    if (path / CONFIG_FILE).exists():
        yield from _examine_run(path)
    elif (path / VOCABULARY_FILE).exists() or (path / CHECKSUMS_FILE).exists():
        yield _attempt("corpus", lambda: _describe_corpus(path))
    else:
        yield Finding(str(path), "neither a run nor a corpus", is_good=False)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _attempt(subject: str, check: Callable[[], str]) -> Finding:
    """Runs a check, and turns an error into a finding."""
    try:
        return Finding(subject, check())
    except (InputError, OSError) as error:
        return Finding(subject, str(error), is_good=False)


def _describe_corpus(path: Path) -> str:
    corpus = load_corpus(path)
    return f"{len(corpus.vocabulary):,} words of vocabulary, {corpus.train.size:,} words of training text, intact"


def _examine_run(path: Path) -> Iterator[Finding]:
    try:
        config = load_config(path)
    except (InputError, OSError) as error:
        yield Finding(CONFIG_FILE, str(error), is_good=False)
        return
    yield Finding(CONFIG_FILE, "intact")
    yield _attempt(VOCABULARY_FILE, lambda: f"{len(load_vocabulary(path, config)):,} words, intact")
    for name, describe in OTHER_FILES.items():
        if (path / name).exists():
            yield _attempt(name, partial(describe, path, config))
    if config.data:
        yield _attempt("corpus", lambda: _same_corpus(config))
    checkpoints = Checkpoints(path)
    for step in checkpoints.steps():
        yield _attempt(f"checkpoint {step}", partial(_describe_checkpoint, checkpoints, step))


def _describe_checkpoint(checkpoints: Checkpoints, step: int) -> str:
    verify_checksums(checkpoints.directory / str(step))
    progress = checkpoints.progress(step)
    devices = (
        f"{progress.mesh[0]} x {progress.mesh[1]} devices, {progress.num_processes} process(es), {progress.device}"
    )
    return f"intact, written on {devices}" if progress.device else "intact"


def _describe_metrics(path: Path, _: RunConfig) -> str:
    number, good = (path / METRICS_FILE).read_bytes().count(b"\n"), len(read_metrics(path))
    if good < number:
        raise InputError(f"{number - good} of {number} lines are damaged")
    return f"{number:,} lines, intact"


def _describe_keras_model(path: Path, _: RunConfig) -> str:
    read_keras_model(path)
    return "intact"


def _describe_keras_ids(path: Path, config: RunConfig) -> str:
    read_keras_ids(path, config.model.vocab_size)
    return "intact"


OTHER_FILES = {
    METRICS_FILE: _describe_metrics,
    KERAS_MODEL_FILE: _describe_keras_model,
    KERAS_IDS_FILE: _describe_keras_ids,
}


def _same_corpus(config: RunConfig) -> str:
    corpus = load_corpus(config.data)
    for name, value in fingerprints(corpus).items():
        if config.fingerprints.get(name, value) != value:
            raise InputError(f"{name} in {config.data} has changed since the run was begun")
    return f"{config.data}, intact"
