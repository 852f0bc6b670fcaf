"""Argument types of the commands, with their names in --help."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxlm.cli.command_line import OptionError
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.device_config import MeshConfig, ProcessConfig
from jaxlm.errors import InputError

Texts = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="TEXT [TEXT ...]")]
Data = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
RunPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
TextOrInput = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FILE|-]")]
Paths = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH [PATH ...]")]
Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD [WORD ...]")]
Scales = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=NUMBER [NAME=NUMBER ...]")]
OptionalWord = Annotated[str | None, tyro.conf.arg(metavar="WORD")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalPositional = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[PATH]")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
BatchSize = Annotated[int | Literal["auto"], tyro.conf.arg(metavar="INT|auto")]


def made_by(config: type) -> Any:
    """Returns an annotation for the parser: options of a config, whose `InputError` becomes an `OptionError`."""

    @functools.wraps(config, updated=())
    def make(**options: Any) -> Any:
        try:
            return config(**options)
        except InputError as error:
            raise OptionError(error) from error

    return tyro.conf.arg(constructor=make)


@dataclass(frozen=True)
class ModelOptions:
    __doc__ = str(ModelConfig.__doc__).partition(">>>")[0]  # its example is tested there
    embedding_size: int = 256
    hidden_size: int = 1024
    num_layers: int = 1
    projection_size: int = 0
    tied: bool = False
    dropout: float = 0.0
    softmax_bias: bool = True

    def __post_init__(self) -> None:
        self.config(1)  # raises if they are invalid

    def config(self, vocab_size: int) -> ModelConfig:
        """Returns the config of a model with a vocabulary of some size."""
        return ModelConfig(vocab_size, **asdict(self))


@dataclass(frozen=True)
class StepOptions(TrainConfig):
    __doc__ = TrainConfig.__doc__
    batch_size: tyro.conf.Suppress[int] = 32  # --batch-size may also be "auto"


Model = Annotated[ModelOptions, made_by(ModelOptions), tyro.conf.OmitArgPrefixes]
Step = Annotated[StepOptions, made_by(StepOptions), tyro.conf.OmitArgPrefixes]
Schedule = Annotated[ScheduleConfig, made_by(ScheduleConfig), tyro.conf.OmitArgPrefixes]
Devices = Annotated[MeshConfig, made_by(MeshConfig), tyro.conf.OmitArgPrefixes]
Processes = Annotated[ProcessConfig, made_by(ProcessConfig), tyro.conf.OmitArgPrefixes]


def require_given_once(args: Sequence[str], *options: str) -> None:
    """Raises `InputError` if an option that takes several values is repeated: the parser would keep only the last."""
    for option in options:
        if sum(arg == option or arg.startswith(f"{option}=") for arg in args) > 1:
            raise InputError(f"{option} is given twice; expected all of its values after one {option}.")
