"""The commands as a user calls them: the whole path, and one clear line for each kind of bad input."""

import io
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx
from helpers import error_line, jaxlm, rewrite_json

from jaxlm.cli import run_command
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import load_config, save_config
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.progress import Progress
from jaxlm.runs.restoring import restore_model
from jaxlm.training import settings


def test_whole_path(text_file, tmp_path, capsys, caplog):
    data, run = tmp_path / "data", tmp_path / "run"
    with caplog.at_level(logging.INFO, "jaxlm"):
        assert jaxlm("prepare", text_file, "--out", data, "--vocab-size", 60) == 0
    output, errors = capsys.readouterr()
    assert errors == ""  # which is no terminal: no progress bars
    assert "vocabulary: 60 words" in output and "% unknown" in output
    assert "no `test` text given: holding out the end of the training text" in caplog.text
    flags = ["--hidden-size", 8, "--embedding-size", 4, "--num-sampled", 10, "--batch-size", 4, "--eval-tokens", 100]
    assert jaxlm("train", data, "--out", run, "--steps", 40, "--eval-every", 20, *flags) == 0
    output, errors = capsys.readouterr()
    assert "exact perplexity" in output and errors == ""
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert jaxlm("evaluate", run, "--max-tokens", 200) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "valid: exact perplexity" in output and "test: exact perplexity" in output and "unigram model" in output
    assert "read as 32 streams, each from the zero state" in output  # on which the perplexity depends
    assert "on 224 words" in output and "(unigram model, from word frequencies alone, on the whole text: " in output
    assert jaxlm("generate", run, "--prompt", "the Pequod whale, Queequeg", "--num-words", 5) == 0
    result = capsys.readouterr()
    assert result.out.startswith("the <unk> whale")
    assert result.err == "(not in the vocabulary, so read as <unk>: Pequod, ,, Queequeg)\n"


def test_help_names_the_arguments(capsys):
    for command, name in (("prepare", " [TEXT"), ("evaluate", " RUN"), ("generate", " RUN"), ("resume", " RUN")):
        with pytest.raises(SystemExit):
            jaxlm(command, "--help")
        usage = " ".join(capsys.readouterr().out.split("\n\n")[0].split())
        assert name in usage and "{None" not in usage, usage


def test_prepare_names_the_sampler_for_counts_far_from_zipf(tmp_path, capsys):
    for name, power, advised in (("zipf", 1.0, False), ("flat", 0.0, True)):
        text = "\n".join(f"word{k} " * int(2000 / (k + 1) ** power) for k in range(500))
        (tmp_path / f"{name}.txt").write_text(text)
        assert jaxlm("prepare", tmp_path / f"{name}.txt", "--out", tmp_path / name) == 0
        assert ("train with --sampler unigram" in capsys.readouterr().out) == advised


def test_prepare_says_whether_unk_is_trained(tmp_path, capsys):
    words = tmp_path / "known" / "vocabulary.json"  # its counts are those of the first text
    for name, text, options, trained in (
        ("known", "a b c a\n", [], False),
        ("the same", "b c a c\n", ["--vocabulary", words], False),
        ("unknown", "a x c a\n", ["--vocabulary", words], True),
    ):
        (tmp_path / f"{name}.txt").write_text(text * 400)
        assert jaxlm("prepare", tmp_path / f"{name}.txt", "--out", tmp_path / name, *options) == 0
        assert ("<unk> is never trained" not in capsys.readouterr().out) == trained


def test_help_and_import_do_not_load_what_is_slow():
    code = (
        "import sys, jaxlm, jaxlm.cli; heavy = {'jax', 'tensorflow', 'keras', 'orbax'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "from jaxlm import *; heavy = {'tensorflow', 'keras', 'torch', 'convert'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for module in ("jaxlm", "convert"):
        result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert "usage" in result.stdout


PAGE_FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would leave few faults to count
from jaxlm.runs.glibc import keep_freed_memory
if "late" in sys.argv:
    import jax
print(keep_freed_memory())
import jax, jax.numpy as jnp
negative, x = jax.jit(jnp.negative), jnp.ones(10_000_000)  # the result has 40 MB, 9,700 pages
faults = []
for _ in range(40):  # of which the best counts: other programs can push pages out
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    negative(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize(
    ("arguments", "variables", "kept"),
    [
        ([], {}, True),
        (["late"], {}, False),
        ([], {"MALLOC_TOP_PAD_": "131072"}, False),
        ([], {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False),
    ],
)
def test_training_keeps_freed_memory_unless_told_otherwise(arguments, variables, kept):
    others = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    result = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=others | variables,
    )
    answer, faults = result.stdout.split()
    assert answer == str(kept)
    assert int(faults) < 100 if kept else int(faults) > 9_500


def test_no_module_hides_a_name_of_the_package():
    import jaxlm as package

    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert not modules & set(package.__all__)
    for name in set(package.__all__) - {"candidate_sampling"}:
        assert callable(getattr(package, name)), name


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"caf\xe9\n" * 50, "is not UTF-8"), (b"a\n", "fewer than 3 words")],
)
def test_bad_text(tmp_path, capsys, text, message):
    path = tmp_path / "text"
    if text is not None:
        path.write_bytes(text)
    assert jaxlm("prepare", path, "--out", tmp_path / "data") == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("flags", [pytest.param([], marks=pytest.mark.exhaustive), ["--num-sampled", 5000]])
def test_settings_are_those_of_the_device_and_the_vocabulary_and_a_run_keeps_them(
    corpus_dir, tmp_path, caplog, monkeypatch, flags
):
    with monkeypatch.context() as patched:
        patched.setattr(settings.jax, "default_backend", lambda: "gpu")
        assert settings.default_batch_size() == 128
    flags = [*flags, "--hidden-size", 8, "--embedding-size", 4, "--eval-tokens", 100]
    for steps in (2, 4):  # the same command resumes
        with caplog.at_level(logging.INFO, "jaxlm"):
            assert jaxlm("train", corpus_dir, "--out", tmp_path / "run", "--steps", steps, *flags) == 0
        monkeypatch.setattr(settings, "default_batch_size", lambda: 128)  # of another device
    assert caplog.text.count("`num_sampled` is 120 instead of") == 2
    config = load_config(tmp_path / "run").train
    assert (config.num_sampled, config.batch_size) == (120, 32)


def test_bad_runs(run_dir, tmp_path, capsys):
    assert jaxlm("train", tmp_path / "nowhere", "--out", tmp_path / "run") == 2
    assert "nowhere" in error_line(capsys)
    for command in (["evaluate"], ["generate", "--num-words", 1], ["resume"]):
        assert jaxlm(command[0], tmp_path, *command[1:]) == 2
        assert "is not a run directory" in error_line(capsys)
    for name, file, old, new, message in [
        ("a", "vocabulary.json", '"whale",', '"whales",', "is not the vocabulary of this run"),
        ("b", "config.json", '"size": 11', '"size": 12', "does not fit the model's config"),
        ("c", "config.json", '"data": "/', '"data": "/nowhere/', "if it was moved, name it with --data"),
    ]:
        shutil.copytree(run_dir, tmp_path / name)
        rewrite_json(tmp_path / name / file, old, new)
        assert jaxlm("evaluate", tmp_path / name) == 2
        assert message in error_line(capsys)
    shutil.rmtree(tmp_path / "c" / "checkpoints")
    assert jaxlm("generate", tmp_path / "c") == 2
    assert "has no checkpoint yet" in error_line(capsys)


def test_a_run_is_resumed_without_its_settings(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    assert jaxlm("resume", tmp_path / "run", "--steps", 80, "--learning-rate", 0.02) == 0
    assert "valid: exact perplexity" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "train_loss" in row] == [20, 40, 60, 80]
    assert rows[-2]["learning_rate"] < rows[0]["learning_rate"]
    schedule = load_config(tmp_path / "run").schedule
    assert schedule.steps == 80 and schedule.learning_rate == 0.02 and schedule.eval_every == 20
    assert jaxlm("resume", tmp_path / "run", "--minutes", -1) == 2
    assert "Invalid --minutes" in error_line(capsys)


def test_words_of_any_length_are_shown_shortened(run_dir, tmp_path, capsys, caplog):
    word = "x" * 100_000
    (tmp_path / "text").write_text(f"{word} the sea\n" * 50 + "the of and\n")
    for arguments in (
        ["score", run_dir, tmp_path / "text"],
        ["next-words", run_dir, word],
        ["neighbors", run_dir, word],
    ):
        jaxlm(*arguments)
        assert "x" * 40 + "…" in (errors := capsys.readouterr().err) and len(errors) < 500
    (tmp_path / "words").write_text("the\nof\nsea\n")
    arguments = ["--out", tmp_path / "data", "--vocabulary", tmp_path / "words", "--drop", word[1:]]
    with caplog.at_level(logging.INFO, "jaxlm"):
        assert jaxlm("prepare", tmp_path / "text", *arguments) == 0
    assert caplog.text.count("x" * 40 + "…") == 2 and len(caplog.text) < 1000


def test_a_diverged_model_has_no_perplexity(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    checkpoints, config = Checkpoints(tmp_path / "run"), load_config(tmp_path / "run")
    model = restore_model(checkpoints, checkpoints.best_step(), config.model)
    tables = {"embedding": model.embedding[...], "weights": model.weights[...], "biases": 1000.0 * model.biases[...]}
    lstms = {n: nnx.to_pure_dict(nnx.state(lstm, nnx.Param)) for n, lstm in enumerate(model.lstms)}
    checkpoints.save(61, {"tables": tables, "dense": {"lstms": lstms}}, Progress(1.0, valid_loss=-1.0))
    assert jaxlm("evaluate", tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert "the model has diverged" in output and "perplexity" not in output


def test_an_untrained_import_asks_for_a_corpus(run_dir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    save_config(run, load_config(run)._replace(data=""))
    assert jaxlm("evaluate", run) == 2
    assert "name one with --data" in error_line(capsys)
    assert jaxlm("resume", run) == 2
    assert "run `jaxlm train" in error_line(capsys)


@pytest.mark.parametrize("seed", [-1, 2**32, 99999999999999999999])
@pytest.mark.parametrize("command", [["generate", "--num-words", 1], ["report"], ["train"]])
def test_a_seed_out_of_range_is_one_line(corpus_dir, run_dir, tmp_path, capsys, command, seed):
    name, *flags = command
    arguments = [corpus_dir, "--out", tmp_path / "run"] if name == "train" else [run_dir]
    assert jaxlm(name, *arguments, *flags, f"--seed={seed}") == 2
    assert "Invalid --seed: expected an integer from 0 to 4294967295" in error_line(capsys)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch, encoding):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert run_command(lambda: print("the 船 \udcff")) == 0
    assert output.buffer.getvalue() == b"the ? ?\n"


def test_arguments_that_are_not_utf_8_are_one_line(run_dir, tmp_path, capsys):
    assert jaxlm("next-words", run_dir, "caf\udce9") == 2
    assert "expected text in UTF-8" in error_line(capsys)
    shutil.copytree(run_dir, tmp_path / "caf\udce9")
    assert jaxlm("next-words", tmp_path / "caf\udce9", "the") == 2
    assert "is not in UTF-8, as checkpoints need" in error_line(capsys)


def test_a_corpus_that_was_moved_is_named_with_data(run_dir, corpus_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(corpus_dir, tmp_path / "moved")
    rewrite_json(tmp_path / "run" / "config.json", '"data": "/', '"data": "/nowhere/')
    assert jaxlm("resume", tmp_path / "run", "--steps", 61) == 2
    assert "if it was moved, name it with --data" in error_line(capsys)
    assert jaxlm("resume", tmp_path / "run", "--steps", 61, "--data", tmp_path / "moved") == 0
    assert load_config(tmp_path / "run").data == str(tmp_path / "moved")


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_an_output_directory_may_exist_if_it_is_empty(text_file, corpus_dir, tmp_path, capsys, command):
    flags = ["--hidden-size", 8, "--embedding-size", 4, "--batch-size", 4, "--eval-tokens", 100, "--steps", 2]
    flags += ["--loss", "nce", "--sampler", "unigram"]
    arguments = [text_file] if command == "prepare" else [corpus_dir, *flags]
    (tmp_path / "empty").mkdir()
    assert jaxlm(command, *arguments, "--out", tmp_path / "empty") == 0
    if command == "train":
        config = load_config(tmp_path / "empty").train
        assert (config.loss, config.sampler) == ("nce", "unigram")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    assert jaxlm(command, *arguments, "--out", tmp_path / "full") == 2
    assert "empty" in error_line(capsys)
