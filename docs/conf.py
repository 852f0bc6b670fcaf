"""Configuration of Sphinx. `make docs` builds the pages into build/docs, without network access."""

import importlib.metadata
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parent.parent

project = "jaxlm"
version = release = importlib.metadata.version("jaxlm")
author = "The jaxlm maintainers"
copyright = f"2025, {author}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # a single backtick in a docstring

html_theme = "furo"
html_title = f"jaxlm {version}"
html_show_sourcelink = False

autodoc_typehints = "none"  # "Args:" gives shapes and types
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# types of other projects are not resolved, since that would need their inventories from the network
nitpick_ignore_regex = [("py:.*", r"(?!jaxlm|convert).*")]


def add_fields(app: Any, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Lists the fields of a NamedTuple, with the comments beside them, where its docstring does not."""
    if what == "class" and issubclass(target, tuple) and hasattr(target, "_fields") and "Attributes:" not in lines:
        source = inspect.getsource(target)
        comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", source, re.MULTILINE))
        lines += ["Attributes:", *(f"  {field}: {comments.get(field, '')}" for field in target._fields), ""]


def skip_fields(app: Any, what: str, name: str, target: Any, skip: bool, options: Any) -> bool:
    """Leaves out "Alias for field number 0"."""
    return skip or "Alias for field" in (getattr(target, "__doc__", None) or "")


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Returns a notebook as Markdown: text, code, and what the code printed."""
    title, *cells = notebook["cells"]
    link = f"*This page is the notebook `examples/notebooks/{name}`.*"
    parts = ["".join(title["source"]), link]
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        printed = "".join(line for output in cell.get("outputs", ()) for line in output["text"])
        parts += [f"```text\n{printed.rstrip()}\n```"] if printed else []
    return "\n\n".join(parts) + "\n"


def write_notebook_pages(app: Any) -> None:
    """Writes the pages of the notebooks, which are not in the repository, before Sphinx looks for pages."""
    (ROOT / "docs" / "notebooks").mkdir(exist_ok=True)
    for path in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        text = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.name)
        (ROOT / "docs" / "notebooks" / f"{path.stem}.md").write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Connects the functions above; the docstrings are changed before napoleon reads them."""
    app.connect("builder-inited", write_notebook_pages)
    app.connect("autodoc-process-docstring", add_fields, priority=400)
    app.connect("autodoc-skip-member", skip_fields)
