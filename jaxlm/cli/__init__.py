"""Train a word-level LSTM language model over a very large vocabulary."""

import os
import sys
from collections.abc import Sequence

import tyro

from jaxlm.cli.arguments import RULES, check_command, check_several_values
from jaxlm.cli.command_line import enable_compilation_cache, run_command, show_messages
from jaxlm.cli.generation import generate, neighbors, next_words
from jaxlm.cli.preparation import prepare
from jaxlm.cli.rescoring import rescore
from jaxlm.cli.scoring import compare, score
from jaxlm.cli.supervision import CHILD, run_supervised, supervise
from jaxlm.cli.training import doctor, evaluate, report, resume, train

__all__ = ["main", "run", "run_command", "show_messages"]

COMMANDS = (prepare, train, resume, evaluate, score, compare, rescore, generate, next_words, neighbors, report, doctor)
SEVERAL_VALUES = ("--valid", "--test", "--drop", "--costs", "--lm-costs", "--scale")  # options

app = tyro.extras.SubcommandApp()
for command in COMMANDS:
    app.command(name=command.__name__.replace("_", "-"))(command)


def run(args: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process; returns the exit code."""

    def command() -> int | None:
        given = sys.argv[1:] if args is None else args
        check_command(given, COMMANDS)
        check_several_values(given, *SEVERAL_VALUES)
        return app.cli(registry=RULES, prog="jaxlm", description=__doc__, args=args)

    return run_command(command, *COMMANDS)


def main() -> None:
    """Entry point of the `jaxlm` command."""
    enable_compilation_cache()  # read when JAX is imported
    if CHILD in os.environ:
        show_messages(*COMMANDS)
        run_supervised(run)
        return
    if "--distributed" in sys.argv:
        sys.exit(supervise())
    show_messages(*COMMANDS)
    sys.exit(run())
