"""The run directory: config.json, vocabulary.json, metrics.jsonl and checkpoints."""

import dataclasses
import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from jaxlm.config import LENGTHS, DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import VOCABULARY_FILE, PathLike
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.files import read_json, staged, write_json, write_text
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh
from jaxlm.runs.checkpoint import CHECKPOINTS_DIRECTORY, Checkpoints

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
FORMAT = 1  # of config.json
LOCK_FILE = "lock"

logger = logging.getLogger(__name__)

Config = TypeVar("Config", ModelConfig, LSTMConfig, DenseConfig, TrainConfig, ScheduleConfig)


class RunConfig(NamedTuple):
    """The contents of config.json."""

    model: ModelConfig
    train: TrainConfig | None = None  # None for an imported model without optimizer state
    schedule: ScheduleConfig | None = None  # likewise
    data: str = ""  # directory made by `jaxlm prepare`
    total_steps: int = 0  # 0 until it is known
    fingerprints: dict[str, str] = {}  # of vocabulary and texts, to tell whether they were changed


def create_run(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
    """Writes the files of a new run into an empty directory."""
    vocabulary.save(directory / VOCABULARY_FILE)
    save_config(directory, config._replace(fingerprints=config.fingerprints | {VOCABULARY_FILE: vocabulary.checksum}))


def open_run(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> RunConfig:
    """Makes a run directory, or checks that an existing one holds the same run.

    The schedule may change; the settings of the model and of a training step, the vocabulary and the texts may not.
    An existing run is only read, since another process may be training in it.

    Returns:
      `config`, with the total steps of the existing run if its length is the same.

    Raises:
      InputError: the directory holds something else, or another run.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; expected a run directory, or a new one to make, as `out`.")
    if not directory.exists() or not any(directory.iterdir()):
        with staged(directory) as partial:
            partial.mkdir(parents=True)
            create_run(partial, config, vocabulary)
        return config
    if not (directory / CONFIG_FILE).exists():
        raise InputError(f"{directory} is not empty and not a run (it has no {CONFIG_FILE}); choose another `out`.")
    old = load_config(directory)
    if load_vocabulary(directory, old) != vocabulary:
        raise InputError(f"{directory} is a run with another vocabulary; choose another `out`.")
    steps = Checkpoints(directory).steps()
    untrained = steps == [0]  # an imported model: any settings will do
    _check_same_run(directory, config, RunConfig(old.model) if untrained else old)
    ours, theirs = config.schedule, old.schedule
    if ours is not None and theirs is not None and not untrained:
        if all(getattr(ours, name) == getattr(theirs, name) for name in LENGTHS):
            config = config._replace(total_steps=old.total_steps)
        elif steps and 0 < config.total_steps < steps[0]:
            raise InputError(
                f"{directory} already has {steps[0]} steps, and the new length is {config.total_steps}; a length counts"
                " from the beginning of the run, so give a greater one."
            )
        for name, value in dataclasses.asdict(ours).items():
            if value != getattr(theirs, name):
                logger.info("%s changes from %r to %r", name, getattr(theirs, name), value)
    return config._replace(fingerprints=old.fingerprints | config.fingerprints)


def _check_same_run(directory: Path, config: RunConfig, old: RunConfig) -> None:
    for ours, theirs in ((config.model, old.model), (config.train, old.train)):
        if ours is None or theirs is None:
            continue
        for name in (field.name for field in dataclasses.fields(ours)):
            value, before = getattr(ours, name), getattr(theirs, name)
            if value != before:
                raise InputError(
                    f"{directory} is a run with `{name}`={before!r}, not {value!r}; give the same settings to resume"
                    " it, or choose another `out`."
                )
    for name, text in config.fingerprints.items():
        if old.fingerprints.get(name, text) != text:
            raise InputError(
                f"The {name} text has changed since {directory} was begun: expected {old.fingerprints[name]}."
                f" Received: {text}. Restore it to resume the run, or choose another `out`."
            )


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds the lock of a run directory. The system releases it if the process dies.

    Raises:
      InputError: another process holds it.
    """
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is training in {directory}; wait until it ends, or choose another `out`."
            ) from error
        yield


def save_config(directory: Path, config: RunConfig) -> None:
    """Writes config.json, whole or not at all."""
    value = {
        name: dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
        for name, part in config._asdict().items()
    }
    write_json(directory / CONFIG_FILE, value, FORMAT)


def load_config(directory: Path) -> RunConfig:
    """Reads config.json.

    Raises:
      InputError: it is missing, damaged or of another format.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{directory} is not a run directory: it has no {CONFIG_FILE}. Make one with `jaxlm train`.")
    value = read_json(path, FORMAT)
    try:
        return RunConfig(
            from_dict(ModelConfig, value["model"], f"{path}: model"),
            None if value["train"] is None else from_dict(TrainConfig, value["train"], f"{path}: train"),
            None if value["schedule"] is None else from_dict(ScheduleConfig, value["schedule"], f"{path}: schedule"),
            str(value["data"]),
            int(value["total_steps"]),
            dict(value["fingerprints"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def from_dict(cls: type[Config], values: dict[str, Any], source: str) -> Config:
    """Makes a config of a JSON object.

    Args:
      cls: class of the config.
      values: fields by name.
      source: where they come from, to name in errors.

    Raises:
      InputError: a key is unknown or missing, or a value has the wrong type or range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected an object. Received: {values!r}.")
    fields, types = {field.name: field for field in dataclasses.fields(cls)}, get_type_hints(cls)
    unknown = sorted(set(values) - set(fields))
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise InputError(f"{source}: unknown keys {unknown}, missing keys {missing} in the {cls.__name__}.")
    try:
        return cls(**{name: _from_json(value, types[name], f"{source}: {name}") for name, value in values.items()})
    except (TypeError, InputError) as error:
        raise InputError(f"{source}: {error}") from error


def _from_json(value: Any, kind: Any, source: str) -> Any:
    """Makes the tuples of a config of JSON's lists."""
    if get_origin(kind) is not tuple or not isinstance(value, list):
        return value
    entry = get_args(kind)[0]
    return tuple(value) if entry is float else tuple(from_dict(entry, each, source) for each in value)


def load_vocabulary(directory: Path, config: RunConfig) -> Vocabulary:
    """Reads a run's vocabulary, and checks that it is the one that the model was made for.

    Raises:
      InputError: it is missing, damaged, or another one.
    """
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    if config.fingerprints.get(VOCABULARY_FILE, vocabulary.checksum) != vocabulary.checksum:
        raise InputError(f"{directory / VOCABULARY_FILE} is not the vocabulary of this run; restore it from a copy.")
    if len(vocabulary) != config.model.vocab_size:
        raise InputError(
            f"{directory / VOCABULARY_FILE} does not fit the model: it has {len(vocabulary)} words,"
            f" the model {config.model.vocab_size}."
        )
    return vocabulary


def load_model(directory: PathLike, *, mesh: Mesh | None = None) -> tuple[LanguageModel, Vocabulary, RunConfig]:
    """Reads the best model of a run.

    Args:
      directory: made by `jaxlm train` or `jaxlm.train`.
      mesh: as from `jaxlm.make_mesh`, to read it onto several devices, on whichever it was trained. `evaluate`,
        `generate`, `next_words`, `nearest_words` and `convert.to_keras` take such a model; scores do not.

    Returns:
      The model, its vocabulary, and the run's config.

    Raises:
      InputError: the directory is not a run, has no checkpoint, or its files do not fit each other.
    """
    directory = Path(directory)
    config = load_config(directory)
    vocabulary = load_vocabulary(directory, config)
    if not (directory / CHECKPOINTS_DIRECTORY).is_dir():
        raise InputError(f"{directory} has no checkpoint yet; train longer with `jaxlm train`.")
    checkpoints = Checkpoints(directory)
    return checkpoints.restore_model(checkpoints.best_step(), config.model, mesh), vocabulary, config


def append_metrics(directory: Path, rows: list[dict[str, float]]) -> None:
    """Adds lines to metrics.jsonl."""
    with (directory / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, without damaged lines and a last line that was cut off."""
    path = directory / METRICS_FILE
    rows = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end was cut off, or is empty
        try:
            row = json.loads(line)
            row["step"] + 0
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            logger.warning("%s: line %d is damaged and left out", path, number)
    return rows


def drop_metrics_after(directory: Path, step: int) -> None:
    """Removes what a killed run logged after its last checkpoint, since those steps will come again."""
    rows = [row for row in read_metrics(directory) if row["step"] <= step]
    write_text(directory / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
