"""The scripts of examples/reproduce: they refuse other texts in one line, and run on small ones in the same forms."""

import json
import logging
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "reproduce"


@pytest.fixture
def run(monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """Runs a script in this process, and returns its output, or its error."""
    monkeypatch.syspath_prepend(str(FOLDER))
    logger = logging.getLogger("jaxlm")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate

    def run_script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        logger.handlers = []
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err
        return capsys.readouterr().out

    yield run_script
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="module")
def treebank(text_file, tmp_path_factory) -> Path:
    """A text in the form of the Penn Treebank: lower case, `<unk>`, N, and a blank at both ends of a line."""
    directory = tmp_path_factory.mktemp("ptb")
    lines = text_file.read_text(encoding="utf-8").lower().replace("rare1", "<unk>").replace("rare2", "N").splitlines()
    for name, part in (("train", lines[:1200]), ("valid", lines[1200:1350]), ("test", lines[1350:])):
        text = "".join(f" {' '.join(line.split())} \n" for line in part)
        (directory / f"ptb.{name}.txt").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.slow
def test_zaremba_learns_and_prints_both_perplexities(run, treebank, tmp_path):
    output = run("zaremba2014.py", "--data", treebank, "--out", tmp_path, "--no-check", "--epochs", 6, "--divisor", 8)
    *_, last = output.strip().splitlines()
    assert len(re.findall(r"^step \d+: validation perplexity ", output, re.MULTILINE)) == 6  # once each
    assert last.startswith("test perplexity ") and last.endswith("(published: 114.5)")
    assert float(last.split()[2]) < 14  # the unigram model has 26


@pytest.mark.slow
def test_jozefowicz_plans_the_whole_run(run, treebank, tmp_path):
    for folder, name in (("training", "news.en-{:05}-of-00100"), ("heldout", "news.en.heldout-{:05}-of-00050")):
        directory = tmp_path / f"{folder}-monolingual.tokenized.shuffled"
        directory.mkdir()
        for number in (1, 2):
            shutil.copy(treebank / "ptb.train.txt", directory / name.format(number))
    arguments = ("--out", tmp_path / "out", "--divisor", 256, "--trial-minutes", 0.02)
    error = run("jozefowicz2016.py", "--data", tmp_path, *arguments)
    assert re.fullmatch(r"error: .* 99 shards in .* and 50 in .* Received: 2 and 2\.\n", error)
    output = run("jozefowicz2016.py", "--data", tmp_path, "--no-check", *arguments)
    assert "5 epochs of " in output and output.strip().endswith(" hours")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (None, "there is no file .*ptb.train.txt"),
        (b"a b\n", "has 4 bytes instead of 5,101,618"),
        (b"a" * 5_101_618, "has the right size and other contents"),
    ],
)
def test_another_text_is_refused_in_one_line(file, problem, run, tmp_path):
    if file is not None:
        (tmp_path / "ptb.train.txt").write_bytes(file)
    error = run("zaremba2014.py", "--data", tmp_path, "--out", tmp_path / "out")
    assert re.fullmatch(f"error: .*Mikolov.*{problem}.*\n", error)


def test_a_text_without_a_checksum_is_checked_by_its_words(run, tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(" = Title = \n \n" * 9, encoding="utf-8")
    error = run("merity2018.py", "--data", tmp_path, "--out", tmp_path / "out", "--text", "wikitext2")
    assert error.endswith(" has 45 words and line ends instead of 2,088,628.\n")


@pytest.mark.exhaustive
def test_merity_learns_and_prints_both_perplexities(run, treebank, tmp_path):
    output = run("merity2018.py", "--data", treebank, "--out", tmp_path, "--no-check", "--epochs", 12, "--divisor", 40)
    *_, last = output.strip().splitlines()
    assert last.startswith("test perplexity ") and last.endswith("(published: 57.3)")
    assert float(last.split()[2]) < 24  # the unigram model has 26
    config = json.loads((tmp_path / "ptb" / "config.json").read_text(encoding="utf-8"))["train"]
    assert config["random_offsets"] and config["average_patience"] == 5
