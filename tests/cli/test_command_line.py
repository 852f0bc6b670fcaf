"""Errors of the system and closed streams end in one clear line."""

import errno
import logging
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers import jaxlm

from jaxlm.cli import COMMANDS, run_command, show_messages


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_error_of_the_system_is_one_line(run_dir, text_file, capsys):
    command = [sys.executable, "-m", "jaxlm", "score", str(run_dir), str(text_file)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (2, "error: The output: No space left on device\n")

    def fail() -> int:  # without the name of a file, and the output is not to blame
        raise OSError(errno.ENOLCK, "No locks available")

    assert run_command(fail) == 2
    assert capsys.readouterr().err == "error: No locks available\n"


def test_too_little_memory_on_the_device_is_one_line(capsys):
    def fill(batch_size: int = 2**50) -> None:
        jnp.zeros(batch_size).block_until_ready()

    assert run_command(fill, fill) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "RESOURCE_EXHAUSTED: " in line and line.endswith("use a smaller --batch-size, `num_sampled` or model.")
    with pytest.raises(RuntimeError, match="another"):
        run_command(lambda: (_ for _ in ()).throw(RuntimeError("another error")))


def test_closed_streams_are_empty(run_dir, monkeypatch, capsys):
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)
    assert jaxlm("score", run_dir, "-") == 2
    assert capsys.readouterr().err == "error: The standard input is empty; expected text.\n"
    assert run_command(lambda: print("words")) == 0
    for file in (sys.stdin, sys.stdout):
        file.close()


def test_messages_name_options(monkeypatch, capsys):
    logger = logging.getLogger("jaxlm")
    for name, value in (("handlers", []), ("propagate", True), ("level", logger.level)):  # restored after the test
        monkeypatch.setattr(logger, name, value)
    show_messages(*COMMANDS)
    logging.getLogger("jaxlm.runs.run_logger").warning("Start again in another `out` with a lower `learning_rate`.")
    logger.info("`save_steps` changes from %r to %r", 0, 5)
    output, errors = capsys.readouterr()
    assert errors == "Start again in another --out with a lower --learning-rate.\n"
    assert output == "--save-steps changes from 0 to 5\n"
