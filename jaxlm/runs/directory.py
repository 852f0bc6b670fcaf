"""The run directory: its config.json and vocabulary.json, and the model of its best checkpoint."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from jaxlm.config import DenseConfig, LSTMConfig, ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import Corpus, load_corpus
from jaxlm.data.vocabulary import VOCABULARY_FILE, Vocabulary
from jaxlm.errors import InputError
from jaxlm.files import PathLike, read_json, write_json
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import Mesh
from jaxlm.runs.checkpoint import CHECKPOINTS_DIRECTORY, Checkpoints
from jaxlm.runs.restoring import restore_model

CONFIG_FILE = "config.json"
FORMAT = 1  # of config.json

Config = TypeVar("Config", ModelConfig, LSTMConfig, DenseConfig, TrainConfig, ScheduleConfig)


class RunConfig(NamedTuple):
    """The contents of config.json."""

    model: ModelConfig
    train: TrainConfig | None = None  # None for an imported model without optimizer state
    schedule: ScheduleConfig | None = None  # likewise
    data: str = ""  # directory made by `jaxlm prepare`
    total_steps: int = 0  # 0 until it is known
    fingerprints: dict[str, str] = {}  # of vocabulary and texts, to detect changes
    use_word_vectors: bool = True  # whether the rows of a new model started at word vectors


def create_run(directory: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
    """Writes the files of a new run into an empty directory."""
    vocabulary.save(directory / VOCABULARY_FILE)
    save_config(directory, config._replace(fingerprints=config.fingerprints | {VOCABULARY_FILE: vocabulary.checksum}))


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
        train, schedule = value["train"], value["schedule"]
        return RunConfig(
            from_dict(ModelConfig, value["model"], f"{path}: model"),
            None if train is None else from_dict(TrainConfig, train, f"{path}: train"),
            None if schedule is None else from_dict(ScheduleConfig, schedule, f"{path}: schedule"),
            str(value["data"]),
            int(value["total_steps"]),
            dict(value["fingerprints"]),
            bool(value["use_word_vectors"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def from_dict(cls: type[Config], values: dict[str, Any], source: str) -> Config:
    """Makes a config of a JSON object; errors name its `source`.

    Raises:
      InputError: a key is unknown or missing, or a value has the wrong type or range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected an object. Received: {values!r}.")
    parameters, types = inspect.signature(cls).parameters, get_type_hints(cls.__init__)
    unknown = sorted(set(values) - set(parameters))
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise InputError(f"{source}: unknown keys {unknown}, missing keys {missing} in the {cls.__name__}.")
    try:
        return cls(**{name: _from_json(value, types[name], f"{source}: {name}") for name, value in values.items()})
    except (TypeError, InputError) as error:
        raise InputError(f"{source}: {error}") from error


def _from_json(value: Any, kind: Any, source: str) -> Any:
    """Turns the lists of JSON into the tuples of a config."""
    if get_origin(kind) is not tuple or not isinstance(value, list):
        return value
    entry = get_args(kind)[0]
    return tuple(value) if entry is float else tuple(from_dict(entry, each, source) for each in value)


def load_vocabulary(directory: Path, config: RunConfig) -> Vocabulary:
    """Reads a run's vocabulary, and checks that it is that of the model.

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


def corpus_of_run(directory: PathLike, config: RunConfig, data: PathLike = "") -> Corpus:
    """Opens the corpus of a run in the directory `data`, by default that of its training.

    Raises:
      InputError: no corpus is there, or it is damaged or has another vocabulary.
    """
    if not (data or config.data):
        raise InputError(f"{directory} was not trained on a corpus yet; name one with `data`.")
    if not data and not Path(config.data).is_dir():
        raise InputError(
            f"{config.data}, the corpus of {directory}, is not a directory; if it was moved, name it with `data`."
        )
    corpus = load_corpus(data or config.data)
    if corpus.vocabulary.checksum != config.fingerprints.get(VOCABULARY_FILE, corpus.vocabulary.checksum):
        raise InputError(
            f"{data or config.data} has another vocabulary than {directory}; name the right corpus with `data`."
        )
    return corpus


class Run(NamedTuple):
    """A run that was read from its directory: the model of the best checkpoint, its vocabulary and its config."""

    model: LanguageModel
    vocabulary: Vocabulary
    config: RunConfig


def load_model(directory: PathLike, *, mesh: Mesh | None = None) -> Run:
    """Reads a run with the model of its best checkpoint.

    Args:
      directory: made by `jaxlm train` or `jaxlm.train`.
      mesh: devices to place the model on, as from `jaxlm.make_mesh`; they need not be those it was trained on.
        `evaluate`, `generate`, `next_words`, `nearest_words` and `convert.to_keras` take such a model; scores do not.

    Returns:
      A `Run` with the fields `model`, `vocabulary` and `config`.

    Raises:
      InputError: the directory is not a run, has no checkpoint, or its files do not fit each other.
    """
    directory = Path(directory)
    config = load_config(directory)
    vocabulary = load_vocabulary(directory, config)
    if not (directory / CHECKPOINTS_DIRECTORY).is_dir():
        raise InputError(f"{directory} has no checkpoint yet; train longer with `jaxlm train`.")
    checkpoints = Checkpoints(directory)
    model = restore_model(checkpoints, checkpoints.best_step(), config.model, mesh, config.train)
    return Run(model, vocabulary, config)
