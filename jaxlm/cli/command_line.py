"""Runs a command: bad input becomes one line and an exit code, messages go to the terminal."""

import dataclasses
import errno
import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints, is_typeddict

from jaxlm.errors import InputError

INTERRUPTED = 130  # 128 + SIGINT: stopped by Ctrl-C or SIGTERM
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in an error of JAX
CLOSED_PIPE = 141  # 128 + SIGPIPE, as of any program whose output is no longer read
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OPTIONS = {"use_word_vectors": "word_vectors"}  # arguments of jaxlm whose options have another name


class OptionError(Exception):
    """An `InputError` raised while options are parsed. It is no ValueError, since the parser would reword that."""


def run_command(command: Callable[[], int | None], *commands: Callable) -> int:
    """Runs a command. Bad input becomes one line on stderr and exit code 2.

    Args:
      command: runs the command line.
      commands: the functions behind it. Their parameters, in backticks in a message, are shown as options.

    Returns:
      The exit code.
    """
    replace_closed_streams()
    print_any_text()
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        _discard_output()
        return CLOSED_PIPE
    except (InputError, OptionError, OSError) as error:
        if _is_of_output(error):
            _discard_output()
        print(f"error: {_with_options(_message(error), commands)}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # of JAX, among others
        if OUT_OF_MEMORY not in str(error):
            raise
        print(f"error: {_with_options(_memory_advice(error), commands)}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:  # an argument that is not UTF-8 has halves of surrogate pairs
        print(f"error: expected text in UTF-8. Received: {error.object[:100]!r}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def replace_closed_streams() -> None:
    """Replaces standard streams that the caller has closed, as some services do, by the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def print_any_text() -> None:
    """Replaces characters that the encoding of the output lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def _discard_output() -> None:
    """Sends the rest of the output to the null device."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # the output is not a file
        pass


def _is_of_output(error: Exception) -> bool:
    """Returns whether the disk of the output is full: other files are named in the error."""
    return isinstance(error, OSError) and error.filename is None and error.errno in DISK_ERRORS


def _message(error: Exception) -> str:
    """Returns the text of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:  # of the system
        name = "The output" if _is_of_output(error) else error.filename
        return error.strerror if name is None else f"{name}: {error.strerror}"
    return " ".join(str(error).split())


def _memory_advice(error: RuntimeError) -> str:
    """Returns what to do if a device has too little memory, with the first line of JAX's error."""
    cause = str(error).partition("\n")[0][:200].rstrip(".")
    return (
        f"The device has too little free memory ({cause}). End other programs that use it (`nvidia-smi` shows those on"
        " a GPU), or use a smaller `batch_size`, `num_sampled` or model."
    )


def _with_options(message: str, commands: tuple[Callable, ...]) -> str:
    """Writes `num_sampled` as --num-sampled, and `tied`=False as --no-tied, if a command has such an option."""
    options = {name for command in commands for name in option_names(command)}

    def option(match: re.Match) -> str:
        name, value = OPTIONS.get(match[1], match[1]), match[2]
        if name not in options:
            return match[0]
        flag = name.replace("_", "-")
        return {"=False": f"--no-{flag}", "=True": f"--{flag}"}.get(value, f"--{flag}{value or ''}")

    return re.sub(r"`(\w+)`(=True|=False)?", option, message)


def option_names(command: Callable) -> Iterator[str]:
    """Yields the options of the function behind a command, such as num_sampled; those of a config are its fields."""
    types = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        kind = types[parameter.name]
        if dataclasses.is_dataclass(kind):
            yield from (field.name for field in dataclasses.fields(kind))
        elif is_typeddict(kind):
            yield from kind.__annotations__
        elif parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            yield parameter.name


def show_messages(*commands: Callable) -> None:
    """Prints the messages of jaxlm, above its progress bars. Parameters of the commands are shown as options."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm  # slow to import: --help does without

            try:
                message = _with_options(self.format(record), commands)
                tqdm.write(message, file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)
            except BrokenPipeError:
                raise
            except OSError:  # a log on a full disk; the command goes on without it
                pass

    logging.getLogger("jaxlm").addHandler(Handler())
    logging.getLogger("jaxlm").setLevel(logging.INFO)
    logging.getLogger("jaxlm").propagate = False  # absl adds a handler to the root logger


def enable_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the user's cache directory, unless the environment configures it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
