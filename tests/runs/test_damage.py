"""Damaged files of a run and a corpus end in one clear line, or in a recovery that is told; never in other numbers."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlm.cli import run
from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.preparation import prepare
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.runs.loop import resume, train

LOGS = ("metrics.jsonl", "curve.png", "lock")  # which no result depends on


def truncate(fraction: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])


def flip(fraction: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(len(data) - 1, int(fraction * len(data)))] ^= 16
        path.write_bytes(data)

    return damage


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": truncate(0.0),
    "cut in half": truncate(0.5),
    "cut at the end": truncate(0.99),
    "first byte flipped": flip(0.0),
    "middle byte flipped": flip(0.5),
    "last byte flipped": flip(1.0),
    "deleted": Path.unlink,
    "a directory": replace_by_directory,
    "of another run": None,
}
QUICK = ("cut in half", "middle byte flipped", "deleted", "of another run")


@pytest.fixture(scope="module")
def originals(text_file, tmp_path_factory) -> tuple[Path, Path]:
    """Makes two directories, each with a corpus and a run on it; they differ in every file."""
    directories = []
    for seed in (0, 1):
        directory = tmp_path_factory.mktemp("original")
        text = text_file.read_text(encoding="utf-8").replace("whale", "cod" if seed else "whale")
        (directory / "text.txt").write_text(text + "the end\n" * seed, encoding="utf-8")
        corpus = prepare(directory / "text.txt", directory / "data", vocab_size=60, progress=False)
        model = ModelConfig(len(corpus.vocabulary), embedding_size=5, hidden_size=6)
        config = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20, seed=seed)
        schedule = ScheduleConfig(steps=60, eval_every=20, eval_tokens=200)
        train(corpus, directory / "run", model, config, schedule, data=directory / "data", progress=False)
        directories.append(directory)
    return directories[0], directories[1]


def evaluate(directory: Path, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """Returns the exit code, the numbers and the errors of `jaxlm evaluate`."""
    arguments = ["evaluate", directory / "run", "--data", directory / "data", "--max-tokens", 200]
    code = run(list(map(str, arguments)))
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip() and "evaluating" not in line]  # progress bars
    return code, captured.out, "\n".join(lines)


def cases(directory: Path) -> list[tuple[str, str]]:
    files = [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name not in LOGS and "tensorboard" not in path.parts]
    return [(str(path), damage) for path in files if path.name != "text.txt" for damage in DAMAGES]


def check(cases: list[tuple[str, str]], originals: tuple[Path, Path], tmp_path: Path, capsys: Any, caplog: Any) -> None:
    expected = evaluate(originals[0], capsys)[1]
    for case in cases:
        check_one(case, expected, originals, tmp_path, capsys, caplog)


def check_one(
    case: tuple[str, str], expected: str, originals: tuple[Path, Path], tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    name, damage = case
    directory = tmp_path / re.sub(r"\W", "_", f"{name} {damage}")
    shutil.copytree(originals[0], directory)
    if damage == "of another run":
        shutil.copy(originals[1] / name, directory / name)
    else:
        DAMAGES[damage](directory / name)
    caplog.clear()
    code, numbers, errors = evaluate(directory, capsys)
    if code == 2:
        assert numbers == "" and errors.startswith("error: ") and errors.count("\n") == 0, (case, errors)
        assert str(directory / Path(name).parts[0]) in errors, (case, errors)
    else:  # an older checkpoint, or one that was not the best, is still there
        assert code == 0 and errors == "", (case, errors)
        told = any("is passed over" in record.getMessage() for record in caplog.records)
        assert numbers == expected or told, (case, numbers)
        assert numbers == expected or name.startswith("run/checkpoints/"), case
    shutil.rmtree(directory)


def test_some_damages_are_told(originals, tmp_path, capsys, caplog):
    everything = cases(originals[0])
    assert len(everything) > 500
    important = [case for case in everything if "checkpoints" not in case[0] and case[1] in QUICK]
    chosen = np.random.default_rng(0).permutation(len(everything))[:10]
    check([*important, *(everything[i] for i in chosen)], originals, tmp_path, capsys, caplog)


@pytest.mark.exhaustive
def test_all_damages_are_told(originals, tmp_path, capsys, caplog):
    check(cases(originals[0]), originals, tmp_path, capsys, caplog)


def test_training_resumes_from_the_checkpoint_before_a_damaged_one(originals, tmp_path, capsys, caplog):
    directory = tmp_path / "copy"
    shutil.copytree(originals[0], directory)
    flip(0.5)(directory / "run" / "checkpoints" / "60" / "state" / "tables" / "weights" / "0.0")
    with caplog.at_level("INFO", "jaxlm"):
        resume(directory / "run", progress=False)
    assert "checkpoint 60 is passed over" in caplog.text and "resuming from step 40" in caplog.text
    capsys.readouterr()
    assert evaluate(directory, capsys) == evaluate(originals[0], capsys)


def test_if_every_checkpoint_is_damaged_nothing_is_read(originals, tmp_path, capsys):
    directory = tmp_path / "copy"
    shutil.copytree(originals[0], directory)
    for checkpoint in (directory / "run" / "checkpoints").iterdir():
        truncate(0.5)(checkpoint / "state" / "tables" / "biases" / "0")
    code, numbers, errors = evaluate(directory, capsys)
    assert code == 2 and numbers == "" and "All checkpoints" in errors


def test_a_changed_text_is_refused(originals, tmp_path, capsys):
    """The corpus was prepared again from another text with the same vocabulary."""
    directory = tmp_path / "copy"
    shutil.copytree(originals[0], directory)
    shutil.rmtree(directory / "data")
    text = (directory / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "text.txt").write_text("".join(sorted(text)), encoding="utf-8")
    given = Vocabulary.load(directory / "run" / "vocabulary.json")
    prepare(directory / "text.txt", directory / "data", vocabulary=given, progress=False)
    (directory / "run" / "config.json").write_text((originals[0] / "run" / "config.json").read_text())
    arguments = [
        "train",
        directory / "data",
        "--out",
        directory / "run",
        "--steps",
        80,
        "--eval-every",
        20,
        "--eval-tokens",
        200,
    ]
    arguments += "--embedding-size 5 --hidden-size 6 --batch-size 4 --sequence-length 5 --num-sampled 20".split()
    assert run(list(map(str, arguments))) == 2
    assert "The train text has changed since" in capsys.readouterr().err
