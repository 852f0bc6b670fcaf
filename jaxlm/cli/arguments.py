"""Argument types of the commands, with their names in --help."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxlm.cli.command_line import OptionError
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.device_config import MeshConfig, ProcessConfig
from jaxlm.errors import InputError


def shown(default: object, metavar: str | None = None) -> Any:
    """Returns an annotation with the default that --help shows of an option whose value is None if it is left out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def number(kind: type[int | float], expected: str, metavar: str = "", word: str | None = None) -> Any:
    """Returns how the parser reads a number, or the `word` that may replace it."""

    def parse(values: list[str]) -> Any:
        if values[0] == word:
            return word
        try:
            return kind(values[0])
        except ValueError as error:
            raise ValueError(f"expected {expected}. Received: {values[0]}") from error

    metavar = metavar or kind.__name__.upper()
    return PrimitiveConstructorSpec(1, metavar, parse, lambda _: True, lambda value: [str(value)])


RULES = ConstructorRegistry()  # how the parser reads the options of every command


@RULES.primitive_rule
def _number(option: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Reads a number; anything else gets a plain error message."""
    expected = {int: "an integer", float: "a number"}.get(option.type)
    return number(option.type, expected) if expected else None


@RULES.primitive_rule
def _optional(option: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Reads an option of type `X | None` like one of type `X`: no text stands for None."""
    kinds = get_args(option.type)
    if len(kinds) != 2 or NoneType not in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    spec = RULES.get_primitive_spec(PrimitiveTypeInfo.make(kind, option.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(spec, is_instance=lambda _: True, str_from_instance=lambda value: [str(value)])


Texts = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="TEXT [TEXT ...]")]
Data = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
RunPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
TextOrInput = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FILE|-]")]
Paths = Annotated[tuple[Path, ...], shown(None, "PATH [PATH ...]")]
Words = Annotated[tuple[str, ...], shown(None, "WORD [WORD ...]")]
Scales = Annotated[tuple[str, ...], shown(None, "NAME=NUMBER [NAME=NUMBER ...]")]
OptionalWord = Annotated[str | None, tyro.conf.arg(metavar="WORD")]
OptionalPositional = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[PATH]")]
TokenizationName = Literal["words", "whitespace", "text_vectorization", "keras_tokenizer"]
BatchSize = Annotated[int | Literal["auto"], number(int, "an integer, or auto", "INT|auto", "auto")]


def made_by(config: type) -> Any:
    """Returns an annotation for the parser: options of a config, whose `InputError` becomes an `OptionError`."""

    @functools.wraps(config, updated=())
    def make(**options: Any) -> Any:
        try:
            return config(**options)
        except InputError as error:
            raise OptionError(error) from error

    return tyro.conf.arg(constructor=make)


class ModelOptions(TypedDict, total=False):
    """Those options of `ModelConfig` that are given."""

    embedding_size: Annotated[int, shown(256)]
    hidden_size: Annotated[int, shown(1024)]
    num_layers: Annotated[int, shown(1)]
    projection_size: Annotated[int, shown(0)]
    tied: Annotated[bool, shown(False)]
    dropout: Annotated[float, shown(0.0)]
    softmax_bias: Annotated[bool, shown(True)]


class MeshOptions(TypedDict, total=False):
    """Those options of `MeshConfig` that are given."""

    vocab_shards: Annotated[int, shown(0)]
    data_shards: Annotated[int, shown(1)]


# their help is that of the configs; the example is tested there
ModelOptions.__doc__ = str(ModelConfig.__doc__).partition(">>>")[0]
MeshOptions.__doc__ = MeshConfig.__doc__


@dataclasses.dataclass(frozen=True)
class StepOptions(TrainConfig):
    __doc__ = TrainConfig.__doc__
    batch_size: tyro.conf.Suppress[int] = 32  # --batch-size may also be "auto"


Model = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes]
Step = Annotated[StepOptions, made_by(StepOptions), tyro.conf.OmitArgPrefixes]
Schedule = Annotated[ScheduleConfig, made_by(ScheduleConfig), tyro.conf.OmitArgPrefixes]
Devices = Annotated[MeshOptions, tyro.conf.OmitArgPrefixes]
Processes = Annotated[ProcessConfig, made_by(ProcessConfig), tyro.conf.OmitArgPrefixes]


def check_command(args: Sequence[str], commands: Iterable[Callable]) -> None:
    """Checks that the first argument, unless it is an option, is a command.

    Raises:
      InputError: it is not; suggests a similar one.
    """
    names = [command.__name__.replace("_", "-") for command in commands]
    name = args[0].replace("_", "-") if args else "-"
    if name.startswith("-") or name in names:
        return
    similar = difflib.get_close_matches(name, names, 1)
    advice = f" Did you mean {similar[0]}?" if similar else ""
    raise InputError(f"Expected a command: {', '.join(names)}. Received: {args[0]}.{advice}")


def check_several_values(args: Sequence[str], *options: str) -> None:
    """Checks options that take several values.

    Raises:
      InputError: an option is repeated, of which the parser would keep only the last, or has no value, as from an
        empty pattern of the shell.
    """
    names = [arg.partition("=")[0].replace("_", "-") for arg in args]  # the parser reads --lm_costs as --lm-costs
    for option in options:
        places = [n for n, name in enumerate(names) if name == option]
        if len(places) > 1:
            raise InputError(f"{option} is given twice; expected all of its values after one {option}.")
        for n in places:
            if "=" not in args[n] and (n + 1 == len(args) or args[n + 1].startswith("--")):
                raise InputError(f"{option} is given without a value; expected at least one, or no {option}.")
