"""The `jaxlm-convert` command: conversions, comparisons, and one clear line for each kind of bad input."""

import json
import re
import shutil

import pytest
from convert_helpers import run_convert, run_python, skip_without

from convert.checks import comparison
from convert.files.export import export

OTHERS = ("a.h5", "a.weights.h5", "saved", "a.tflite", "a.onnx")


@pytest.mark.parametrize(
    "name",
    ["a.keras", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)],
)
def test_perplexity_through_each_format_is_that_of_jaxlm(run_dir, text_file, tmp_path, capsys, name):
    skip_without(name)
    run = shutil.copytree(run_dir, tmp_path / "runs" / "v1.5")
    out = tmp_path / "out" / name
    out.parent.mkdir()
    assert run_convert("to-keras", run, out) == 0
    assert "verified as above" in capsys.readouterr().out
    assert run_convert("verify", run, out, "--text", text_file, "--max-tokens", 300) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("perplexity"))
    ours, theirs = map(float, re.findall(r" (\d+\.\d{4})\b", line))
    assert f"{ours:.4g}" == f"{theirs:.4g}" and 1 < ours < 120
    assert [path.name for path in out.parent.iterdir()] == [name]


def test_a_failure_leaves_nothing_behind_and_existing_files_untouched(run_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "model.keras"
    out.write_bytes(b"precious")
    assert run_convert("to-keras", run_dir, out) == 2
    assert "already exists; replace it with --overwrite" in capsys.readouterr().err
    monkeypatch.setitem(comparison.TOLERANCES, "float32", -1.0)  # no model is that close
    assert run_convert("to-keras", run_dir, out, "--overwrite") == 2
    assert re.search(r"differs .* largest difference, of \S+, is \S+, and -1 is allowed\.\n$", capsys.readouterr().err)
    monkeypatch.setitem(comparison.TOLERANCES, "float16", -0.5)
    assert run_convert("to-keras", run_dir, out, "--overwrite", "--dtype", "float16") == 2
    error = capsys.readouterr().err
    assert "differs from the run" in error and "and -0.5 is allowed with float16; use --dtype float32" in error
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    assert run_convert("to-keras", run_dir, out, "--overwrite") == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "expected the extension .keras"),
        ("no/where/a.keras", "does not exist"),
        ("directory.keras", "is a directory"),
        ("directory", "is a directory"),
        ("file", "is a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(run_dir, tmp_path, capsys, name, message):
    (tmp_path / "directory.keras").mkdir()
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    assert run_convert("to-keras", run_dir, tmp_path / name) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.tflite", ["--last-only"], "--last-only is not available for .tflite. Available options: --logits"),
        ("a.weights.h5", ["--logits"], "Available options: none"),
        ("a.keras", ["--dtype", "int8"], "--dtype int8 is not available for .keras; use float32, float16 or bfloat16"),
        ("saved", ["--dtype", "float16"], "--dtype float16 is not available for a SavedModel; use float32"),
        ("a.h5", ["--keep-optimizer"], "--keep-optimizer is not available for .h5; use .keras"),
    ],
)
def test_an_option_that_a_format_lacks_is_refused(run_dir, tmp_path, capsys, name, arguments, message):
    assert run_convert("to-keras", run_dir, tmp_path / name, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(run_dir, tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails in the same way."""
    code = f"""
import resource, signal
from convert.cli import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for name in ("model.keras", "saved", "model.tflite"):
    assert run(["to-keras", {str(run_dir)!r}, {str(tmp_path)!r} + "/" + name]) == 2, name
"""
    result = run_python("-c", code, JAX_ENABLE_COMPILATION_CACHE="false")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("cannot be written") == 3 and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_verify_compares_any_two_formats(run_dir, tmp_path, capsys, random_run):
    assert run_convert("to-keras", run_dir, tmp_path / "a.tflite") == 0
    assert run_convert("to-keras", run_dir, tmp_path / "a.h5") == 0
    assert run_convert("verify", tmp_path / "a.tflite", tmp_path / "a.h5") == 0
    assert "the models agree" in capsys.readouterr().out
    assert run_convert("verify", tmp_path / "a.h5", tmp_path / "a.tflite", "--text", tmp_path / "no.txt") == 2
    assert "--vocabulary" in capsys.readouterr().err
    export(random_run(), tmp_path / "other.keras")
    assert run_convert("verify", tmp_path / "other.keras", tmp_path / "a.h5") == 1
    assert "size of the vocabulary" in capsys.readouterr().out
    export(random_run(1, vocab_size=120, embedding_size=7, hidden_size=11), tmp_path / "same_size.keras")
    assert run_convert("verify", tmp_path / "same_size.keras", run_dir) == 1
    assert "the models differ" in capsys.readouterr().out
    assert run_convert("verify", tmp_path / "nothing.keras", run_dir) == 2
    assert "does not exist" in capsys.readouterr().err


def test_help_does_not_wait_for_keras():
    code = "import sys, convert.cli; sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'jax')))"
    assert run_python("-c", code).returncode == 0
    result = run_python("-m", "convert", "--help")
    assert result.returncode == 0 and "to-keras" in result.stdout


def test_the_screen_shows_no_messages_of_tensorflow_and_keras(run_dir, tmp_path):
    result = run_python("-m", "convert", "to-keras", run_dir, tmp_path / "model.h5")
    assert (result.returncode, result.stderr) == (0, "")
    assert " kB, verified as above" in result.stdout  # a tiny model


def test_wrong_options_of_verify_are_refused(run_dir, text_file, capsys):
    cases = [
        (("--text", text_file, "--max-tokens", -5), "Invalid --max-tokens: expected at least 0. Received: -5."),
        (("--max-tokens", 10_000), "Invalid --max-tokens: expected no value without --text. Received: 10000."),
        (("--vocabulary", "nope.json"), "Invalid --vocabulary: expected no value without --text."),
    ]
    for options, message in cases:
        assert run_convert("verify", run_dir, run_dir, *options) == 2
        assert message in capsys.readouterr().err
    assert run_convert("verfy", run_dir, run_dir) == 2
    assert "Received: verfy. Did you mean verify?" in capsys.readouterr().err


def test_a_vocabulary_that_does_not_fit_is_refused(run_dir, tmp_path, capsys):
    assert run_convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    words = json.loads((run_dir / "vocabulary.json").read_text(encoding="utf-8"))["words"]
    cases = {
        "short": ("\n".join(words[:-1]), "119 words"),
        "twice": ("\n".join([*words[:-1], "the"]), "'the' 2 times"),
        "keras": ("\n".join(["<oov>" if word == "<unk>" else word for word in words]), "Invalid --unk"),
        "bytes": ("the\n\udcff", "is not UTF-8: byte 0xff in line 2"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        arguments = ("--vocabulary", path, "--unk", "<unk>")
        assert run_convert("from-keras", tmp_path / "model.keras", tmp_path / "run", *arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    arguments = ("--vocabulary", tmp_path / "keras.txt", "--unk", "<oov>")
    assert run_convert("from-keras", tmp_path / "model.keras", tmp_path / "run", *arguments) == 0
    assert run_convert("from-keras", tmp_path / "model.keras", tmp_path / "run", *arguments) == 2
    assert "already exists" in capsys.readouterr().err
