"""Writes the English of the installed documentation to one text file: a corpus without a download.

    python examples/embedded_corpus.py corpus.txt

Takes the standard library's language reference (pydoc_data.topics) and the docstrings of numpy, jax,
flax, optax and keras: about 1.5 to 3.6 million words and punctuation marks, depending on their
versions.
"""

import ast
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy", "jax", "flax", "optax", "keras")


def docstrings(package: str) -> Iterator[str]:
    """Yields the docstrings of all modules of a package, read from its source without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def main() -> None:
    from pydoc_data import topics

    found = dict.fromkeys(topics.topics.values())  # no repeats, in order
    for package in PACKAGES:
        found |= dict.fromkeys(docstrings(package))
    texts = list(found)
    random.Random(0).shuffle(texts)  # so that the end, held out for validation, is like the rest
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(lines):,} lines, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
