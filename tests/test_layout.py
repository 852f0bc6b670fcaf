"""The layout: imports go one way, from each folder to those below it; files and functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.files.format_table import FORMATS

ROOT = Path(__file__).parent.parent
# each folder may import those on the lines above its own, and itself; "" are the modules at the root of the package
LAYERS = {
    "jaxlm": [
        {""},
        {"candidate_sampling", "parallel"},
        {"data", "model", "losses"},
        {"training", "inference"},
        {"runs"},
        {"reports"},
        {"cli"},
    ],
    "convert": [{""}, {"weights", "checks"}, {"keras_models"}, {"formats", "fit"}, {"files"}, {"cli"}],
}
LONGEST_FILE, LONGEST_FUNCTION = 300, 50  # lines; those of a function without its docstring


def folder_of(module: str) -> str:
    """Returns the folder of a module, such as "data" of "jaxlm.data.corpus"; "" for a module at the root."""
    package, *names = module.split(".")
    path = ROOT / package
    return names[0] if names and ((path / names[0]).is_dir() or names[0] == "cli") else ""


def imports(path: Path) -> Iterator[str]:
    """Yields the modules of jaxlm and convert that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def rank(package: str, folder: str) -> int:
    return next(number for number, layer in enumerate(LAYERS[package]) if folder in layer)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package):
    for module, path in modules(package):
        folder = folder_of(module)
        for imported in imports(path):
            if imported.split(".")[0] != package:
                assert package == "convert" or not imported.startswith("convert"), (module, imported)
                continue
            other = folder_of(imported)
            assert other == folder or rank(package, other) < rank(package, folder), f"{module} imports {imported}"


def test_modules_that_are_named_in_strings_are_below_the_table_that_names_them():
    for format in FORMATS.values():
        for name in (format.writer, format.reader):
            assert (ROOT / "convert" / f"{name.replace('.', '/')}.py").is_file(), name
            assert rank("convert", folder_of(f"convert.{name}")) < rank("convert", "files")


@pytest.mark.parametrize("package", LAYERS)
def test_every_folder_has_a_layer_and_says_what_it_holds(package):
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders | {"", "cli"} == set().union(*LAYERS[package])
    for folder in folders:
        assert ast.get_docstring(ast.parse((ROOT / package / folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("folder", ["jaxlm", "convert", "tests", "examples"])
def test_files_and_functions_are_short(folder):
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                assert node.end_lineno - first.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"
