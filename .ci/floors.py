"""Prints constraints for pip: the oldest versions of jaxlm's dependencies and extras that pyproject.toml allows.

The tools of the tests are as in constraints.txt.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("dev", "docs", "test")

project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
runtime = [*project["dependencies"], *(line for name in extras if name not in TOOLS for line in extras[name])]
for requirement in runtime:
    if match := re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement):
        print(f"{match[1]}=={match[2]}")
tools = {re.split(r"[>=\[]", line)[0] for name in TOOLS for line in extras[name]}
for pin in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
    if pin.split("==")[0] in tools - {"tf_keras"}:
        print(pin)
