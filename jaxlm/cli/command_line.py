"""How a command runs: bad input becomes one line and an exit code, messages go to the terminal."""

import ctypes
import dataclasses
import inspect
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

from jaxlm.errors import InputError

CLOSED_PIPE = 141  # 128 + SIGPIPE, as of any program whose output is no longer read
# for mallopt, from glibc's malloc.h: all threads share one heap, large blocks lie in it, too, and it does not shrink
KEEP_FREED_MEMORY = {-8: 1, -4: 0, -1: 2**31 - 1}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD


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
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        _discard_output()
        return CLOSED_PIPE
    except (InputError, OptionError, OSError) as error:
        print(f"error: {_with_options(' '.join(str(error).split()), commands)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _discard_output() -> None:
    """Lets Python flush what is left of the output into nothing when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # the output is not a file
        pass


def _with_options(message: str, commands: tuple[Callable, ...]) -> str:
    """Writes `num_sampled` as --num-sampled, if a command has such an option."""
    options = {name for command in commands for name in option_names(command)}

    def option(match: re.Match) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in options else match[0]

    return re.sub(r"`(\w+)`", option, message)


def option_names(command: Callable) -> Iterator[str]:
    """Yields the options of the function behind a command, such as num_sampled; those of a config are its fields."""
    types = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        kind = types[parameter.name]
        if dataclasses.is_dataclass(kind):
            yield from (field.name for field in dataclasses.fields(kind))
        elif parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            yield parameter.name


def show_messages() -> None:
    """Prints the messages of jaxlm, above its progress bars."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)

    logging.getLogger("jaxlm").addHandler(Handler())
    logging.getLogger("jaxlm").setLevel(logging.INFO)
    logging.getLogger("jaxlm").propagate = False  # absl adds a handler to the root logger


def enable_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the user's cache directory, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def keep_freed_memory() -> bool:
    """Lets glibc keep the memory of one training step for the next, unless the environment says how to allocate.

    XLA allocates the temporaries of each step anew. By default, glibc returns them to the system after the step, and
    on a processor a tenth of a step is spent on mapping them again.

    Returns:
      Whether it does: not once JAX is imported, and not with other C libraries.
    """
    given = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if given or "jax" in sys.modules or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in KEEP_FREED_MEMORY.items()])
