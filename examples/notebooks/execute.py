"""Runs the code of notebooks from top to bottom, and stores what it prints in them. Needs no Jupyter.

    make quickstart
    python examples/notebooks/execute.py examples/notebooks/*.ipynb

A notebook's first code cell holds its parameters. --set replaces them, as the tests do to run at a small size.
"""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Annotated, Any

import tyro


def execute(notebook: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Runs the code cells of a notebook in one namespace, and stores what they print.

    Args:
      notebook: as in an .ipynb file; its outputs are replaced.
      parameters: set after the first code cell.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), names)
        if number == 1:
            unknown = set(parameters) - set(names)
            if unknown:
                raise SystemExit(f"error: the notebook has no parameters {sorted(unknown)}")
            names |= parameters
        text = printed.getvalue().splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []


def main(
    notebooks: tyro.conf.Positional[tuple[Path, ...]],
    set: str = "{}",
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
) -> None:
    """Runs notebooks and writes them back.

    Args:
      notebooks: Files to run, in their own directory.
      set: JSON object of parameters.
      out: Directory to write to instead.
    """
    paths = [path.resolve() for path in notebooks]
    target = out.resolve() if out else None
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        os.chdir(path.parent)
        execute(notebook, json.loads(set))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        ((target or path.parent) / path.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
