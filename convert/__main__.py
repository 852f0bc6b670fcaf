"""The `jaxlm-convert` command."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while its modules are imported ends it as it does later."""
    try:
        from convert.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
