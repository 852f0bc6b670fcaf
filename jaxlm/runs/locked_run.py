"""Opens a run for training: makes its directory or checks an existing one, and locks it."""

import dataclasses
import fcntl
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jaxlm.config import LENGTHS, ModelConfig, TrainConfig
from jaxlm.data.vocabulary import VOCABULARY_FILE, Vocabulary
from jaxlm.errors import InputError
from jaxlm.files import staged
from jaxlm.parallel.processes import on_first
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import CONFIG_FILE, RunConfig, create_run, load_config, load_vocabulary, save_config

LOCK_FILE = "lock"

logger = logging.getLogger(__name__)


def with_dtype_of_run(directory: Path, config: TrainConfig) -> TrainConfig:
    """Replaces a `compute_dtype` of "auto" by that of the existing run, if there is one."""
    if config.compute_dtype == "auto" and (directory / CONFIG_FILE).exists():
        before = load_config(directory).train
        return config if before is None else dataclasses.replace(config, compute_dtype=before.compute_dtype)
    return config


@contextmanager
def locked_run(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> Iterator[RunConfig]:
    """Makes a run directory, or checks that an existing one holds the same run, and locks it.

    The schedule may change; the settings of the model and of a training step, the vocabulary and the texts may not.
    Of several processes, the first one does this.

    Yields:
      `config`, with the total steps of the existing run if its length is the same.

    Raises:
      InputError: the directory holds something else, or another run, or another process trains in it.
    """
    with ExitStack() as held:

        def open_in_first() -> None:
            if _is_new(directory):
                with staged(directory) as partial:
                    partial.mkdir(parents=True)
                    create_run(partial, config, vocabulary)
            opened = _continued(directory, config, vocabulary)  # reads only: another process may be training
            held.enter_context(lock(directory))
            save_config(directory, opened)

        on_first(open_in_first)
        yield load_config(directory)


def _is_new(directory: Path) -> bool:
    """Returns whether there is no run yet.

    Raises:
      InputError: something other than a run is there.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; expected a run directory, or a new one to make, as `out`.")
    if not directory.exists() or not any(directory.iterdir()):
        return True
    if not (directory / CONFIG_FILE).exists():
        raise InputError(f"{directory} is not empty and not a run (it has no {CONFIG_FILE}); choose another `out`.")
    return False


def _continued(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> RunConfig:
    """Returns the config with which an existing run continues."""
    old = load_config(directory)
    checkpoints = Checkpoints(directory)
    is_untrained = not any(checkpoints.steps())  # new or imported: any text and training settings will do
    if load_vocabulary(directory, old) != vocabulary:
        text = "the text" if is_untrained else "its text"
        raise InputError(
            f"{directory} is a run with another vocabulary; prepare {text} with `vocabulary`"
            f" {directory / VOCABULARY_FILE} to continue this run, or choose another `out`."
        )
    _check_same_run(directory, config, RunConfig(old.model) if is_untrained else old)
    ours, theirs = config.schedule, old.schedule
    if ours is not None and theirs is not None and not is_untrained:
        if all(getattr(ours, name) == getattr(theirs, name) for name in LENGTHS):
            config = config._replace(total_steps=old.total_steps)
        else:
            _require_longer(checkpoints, config.total_steps, ours.minutes)
        for name, value in dataclasses.asdict(ours).items():
            if value != getattr(theirs, name):
                logger.info("`%s` changes from %r to %r", name, getattr(theirs, name), value)
    return config._replace(fingerprints=old.fingerprints | config.fingerprints)


def _require_longer(checkpoints: Checkpoints, total_steps: int, minutes: float) -> None:
    """Raises `InputError` if the new length of a run, in steps or in minutes, is below the one that it has."""
    steps, progress = checkpoints.steps()[0], checkpoints.latest_progress()
    spent = 0.0 if progress is None else progress.seconds / 60
    done = f"{steps} steps" if total_steps else f"{spent:.4g} minutes"
    if 0 < total_steps < steps or 0 < minutes < spent:
        raise InputError(
            f"{checkpoints.directory.parent} already has {done}, and the new length is {total_steps or minutes}; a"
            " length counts from the beginning of the run, so give a greater one."
        )


def _check_same_run(directory: Path, config: RunConfig, old: RunConfig) -> None:
    settings, before = (_short_form(each) | vars(each) for each in (config.model, old.model))
    if config.train is not None and old.train is not None:
        settings = settings | vars(config.train) | {"use_word_vectors": config.use_word_vectors}
        before = before | vars(old.train) | {"use_word_vectors": old.use_word_vectors}
    for name, value in settings.items():
        if value != before[name]:
            raise InputError(
                f"{directory} is a run with `{name}`={before[name]!r}, not `{name}`={value!r}; give the same settings"
                " to resume it, or choose another `out`."
            )
    for name, text in config.fingerprints.items():
        if old.fingerprints.get(name, text) != text:
            raise InputError(
                f"The {name} text has changed since {directory} was begun: expected {old.fingerprints[name]}."
                f" Received: {text}. Restore it to resume the run, or choose another `out`."
            )


def _short_form(config: ModelConfig) -> dict[str, float]:
    """Returns the settings of a model by the names that the command line has for them."""
    return {
        "hidden_size": config.hidden_size,
        "num_layers": len(config.lstms),
        "projection_size": config.dense[-1].size if config.dense else 0,
        "dropout": config.dropout_rates[0],
    }


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
