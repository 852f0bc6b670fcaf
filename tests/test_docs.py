"""The README and the guide: Python blocks run, commands parse, links lead somewhere, and the README is short."""

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from convert_helpers import skip_without

import convert.cli
import jaxlm.cli
from jaxlm.cli.command_line import option_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"jaxlm": jaxlm.cli.COMMANDS, "jaxlm-convert": convert.cli.COMMANDS}
FUNCTIONS = {  # by program and command
    (program, function.__name__.replace("_", "-")): function
    for program, functions in COMMANDS.items()
    for function in functions
}
EXPORTS = ("novels.keras", "novels", "step.keras", "novels.tflite", "novels.onnx")  # that pages load
# what the pages say, and what runs in seconds
SMALLER = {
    "ModelConfig(vocab_size=len(corpus.vocabulary))": "ModelConfig(len(corpus.vocabulary), 8, 8)",
    "minutes=10)": "steps=4)",
    **{"200_000": "300", "10_000": "200", "5000": "200", "1024": "8", "1000": "20", "500": "4", "256": "8", "100": "2"},
}


def page_id(page: Path) -> str:
    return page.stem


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Returns a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """Returns what stands in backticks, and the lines of the shell blocks."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def options_of(function: Callable) -> set[str]:
    """Returns the options of a command, without dashes."""
    return {name.replace("_", "-") for name in option_names(function)}


def benchmark_options() -> set[str]:
    """Returns the options of all benchmarks and of examples/reproduce, read from their source."""
    folders = [ROOT / "examples" / name for name in ("benchmarks", "reproduce")]
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.py")]
    return {name.replace("_", "-") for source in sources for name in re.findall(r"\b(\w+): [^=\n]*=", source)}


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that writes the model of a name that pages load."""
    directory = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        skip_without(name)
        options = ["--single-step"] if name == "step.keras" else []
        if not (directory / name).exists():
            assert convert.cli.run(["to-keras", str(run_dir), str(directory / name), *options]) == 0
        return directory / name

    return export


@pytest.fixture
def workplace(request, tmp_path, monkeypatch, text_file, corpus_dir, run_dir) -> Callable[[str], None]:
    """Makes what the code of a page reads, and does not make itself, in an empty working directory."""

    def make(code: str) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        (tmp_path / "train.txt").symlink_to(text_file)
        if "jaxlm.prepare(" not in code:
            (tmp_path / "data").symlink_to(corpus_dir)
        if "jaxlm.train(" not in code:
            (tmp_path / "runs" / "novels").symlink_to(run_dir)
        for name in EXPORTS:
            if f'"{name}"' in code and not (name == "novels.keras" and ".save(" in code):
                (tmp_path / name).symlink_to(request.getfixturevalue("exported")(name))

    return make


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_python_blocks_run(page, workplace):
    code = "\n".join(blocks(page, "python"))
    workplace(code)
    for size, smaller in SMALLER.items():
        code = re.sub(rf"\b{re.escape(size)}(?!\w)", smaller, code)
    ids = np.zeros((2, 5), np.int32)
    given = {"V": 120, "inputs": ids, "labels": ids, "token_ids": ids}  # the reader's own, in the text
    exec(compile(code, str(page), "exec"), given)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page_id)
def test_commands_parse(page, capsys):
    for line in spans(page):
        words = shlex.split(line, comments=True) if re.match(r"(jaxlm|jaxlm-convert|python|make) ", line) else []
        if words and words[0] in COMMANDS and words[1] != "--help":
            function = FUNCTIONS.get((words[0], words[1]))
            assert function is not None, line
            if len(words) > 2 and "--help" not in words:
                stub = functools.wraps(function)(lambda *_, **__: None)
                try:
                    tyro.cli(stub, args=words[2:])
                except SystemExit:
                    pytest.fail(f"{line}\n{capsys.readouterr().err}")
        elif words and words[0] == "python" and words[1].endswith(".py"):
            paths = [ROOT / words[1], ROOT / "examples" / "benchmarks" / "problem.py"]
            source = "".join(path.read_text(encoding="utf-8") for path in paths)
            for option in re.findall(r"--([a-z0-9-]+)", line):
                assert re.search(rf"\b{option.replace('-', '_')}: ", source), line
        elif words and words[0] == "make":
            for target in words[1:]:
                assert "=" in target or f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_exist(page):
    known = benchmark_options() | {"help", "constraint", "editable"}  # the last two are pip's
    known = known.union(*map(options_of, FUNCTIONS.values()))
    for span in spans(page):
        for flag in re.findall(r"--(xla_\w+)=true", span):
            jax.jit(lambda: 0, compiler_options={flag: True}).lower().compile()  # raises if XLA has no such flag
        for option in re.findall(r"(?<![\w-])--(?!xla_)([a-z][a-z0-9-]*)", span):
            assert option.removeprefix("no-") in known, f"--{option} in {span}"


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")], ids=page_id)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page)):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_readme_is_short_and_has_what_a_stranger_needs():
    readme = ROOT / "README.md"
    text = re.sub(r"\]\([^)]*\)", "]", prose(readme))
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(words) <= 700
    assert "docs/images/quickstart.png" in readme.read_text(encoding="utf-8")
    assert any(line.startswith("make quickstart") for line in spans(readme)) and "make test" in spans(readme)
    assert len(blocks(readme, "text")[0].splitlines()) == 10  # generated by the quickstart
