"""The notebooks run from top to bottom at a small size, and are kept with what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import quick_if

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
SMALL = {
    "keras-model": {"EMBEDDING_SIZE": 4, "HIDDEN_SIZE": 5, "LENGTH": 6, "SEQUENCES": 70, "NUM_SAMPLED": 20},
    "keras-bodies": {
        "EMBEDDING_SIZE": 4,
        "HIDDEN_SIZE": 5,
        "LENGTH": 8,
        "SEQUENCES": 80,
        "EPOCHS": 1,
        "ITEMS": 100,
        "USERS": 9,
        "EVENTS": 300,
        "NUM_SAMPLED": 20,
    },
    "jax-pieces": {"WIDTH": 4, "BATCH_SIZE": 8, "STEPS": 8, "NUM_SAMPLED": 20},
    "reading": {"SENTENCES": ["the whale of the sea.", "zebra"], "WORDS": ["whale", "ship", "zebra"]},
}


def test_every_notebook_has_a_small_size_and_its_output():
    assert set(SMALL) == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        printing = [cell for cell in cells if cell["cell_type"] == "code" and "print(" in "".join(cell["source"])]
        assert printing and all(cell["outputs"] for cell in printing if not cell["source"][0].startswith("def "))
        assert cells[0]["source"][0].startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_if(lambda name: name == "reading", [(name,) for name in SMALL]))
def test_notebooks_run(name, corpus_dir, run_dir, tmp_path):
    parameters = SMALL[name] | (
        {"RUN": str(run_dir), "REPORT": str(tmp_path / "report.html")}
        if name == "reading"
        else {"DATA": str(corpus_dir)}
    )
    command = [sys.executable, NOTEBOOKS / "execute.py", NOTEBOOKS / f"{name}.ipynb", "--out", tmp_path]
    command += ["--set", json.dumps(parameters)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    cells = json.loads((tmp_path / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert sum(bool(cell.get("outputs")) for cell in cells) >= 3
