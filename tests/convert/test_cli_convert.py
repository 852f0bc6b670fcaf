"""The `jaxlm-convert` command: whole conversions, failures that leave nothing, other processes that read the files."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from convert import comparison
from convert.cli import app
from jaxlm.cli import app as jaxlm_app
from jaxlm.cli import run_command
from jaxlm.run import load_model

ROOT = Path(__file__).parents[1]
SIZES = ("--embedding-size", 7, "--hidden-size", 11, "--num-layers", 2)


def convert(*arguments: object) -> int:
    return run_command(lambda: app.cli(args=[str(argument) for argument in arguments]))


def jaxlm(*arguments: object) -> int:
    return run_command(lambda: jaxlm_app.cli(args=[str(argument) for argument in arguments]))


def in_fresh_process(code: str, tmp_path: Path, **environment: str) -> None:
    """Runs code where importing jaxlm or convert raises."""
    blocked = "import sys; sys.modules['jaxlm'] = sys.modules['convert'] = None\n"
    variables = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    subprocess.run([sys.executable, "-c", blocked + code], check=True, env=variables, cwd=tmp_path, timeout=300)


@pytest.fixture
def ids_and_expected(run_dir, tmp_path):
    """Random ids, in a file, and jaxlm's log-probabilities of them."""
    model, vocabulary, _ = load_model(run_dir)
    ids = np.random.default_rng(0).integers(0, len(vocabulary), (2, 6))
    np.save(tmp_path / "ids.npy", ids)
    return ids, np.asarray(jax.nn.log_softmax(model(ids)[0]))


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_exported_file_needs_keras_alone(run_dir, tmp_path, backend, ids_and_expected):
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install jaxlm[torch]")
    assert convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    code = f"""
import keras, numpy
assert keras.backend.backend() == {backend!r}
model = keras.models.load_model("model.keras")
numpy.save("out.npy", model.predict(numpy.load("ids.npy"), verbose=0))
"""
    in_fresh_process(code, tmp_path, KERAS_BACKEND=backend)
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), ids_and_expected[1], atol=1e-4)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert "jaxlm" not in archive.read("config.json").decode()
    assert convert("verify", run_dir, tmp_path / "model.keras") == 0


def test_h5_loads_in_keras_2(run_dir, tmp_path, ids_and_expected):
    pytest.importorskip("tf_keras", reason="Keras 2 is not installed: pip install tf_keras")
    assert convert("to-keras", run_dir, tmp_path / "model.h5") == 0
    code = """
import numpy, tf_keras
model = tf_keras.models.load_model("model.h5")
numpy.save("out.npy", model.predict(numpy.load("ids.npy"), verbose=0))
"""
    in_fresh_process(code, tmp_path)
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), ids_and_expected[1], atol=1e-4)


def test_saved_model_is_served_by_tensorflow_alone(run_dir, tmp_path, ids_and_expected):
    assert convert("to-keras", run_dir, tmp_path / "served") == 0
    code = """
import numpy, tensorflow as tf
sys.modules["keras"] = None
signatures = tf.saved_model.load("served").signatures
ids = tf.constant(numpy.load("ids.npy"), tf.int32)
numpy.save("out.npy", signatures["serve"](token_ids=ids)["probabilities"].numpy())
texts = tf.constant(["the whale", "", "zzz \\U0001f40b", "sea " * 5000])
best = signatures["next_words"](texts=texts, k=tf.constant(3))
assert best["words"].shape == (4, 3) and (best["probabilities"][:, 0] >= best["probabilities"][:, 2]).numpy().all()
score = signatures["score"](texts=texts)
assert score["num_words"].numpy().tolist() == [3, 1, 3, 5001] and (score["log_probabilities"] < 0).numpy().all()
"""
    in_fresh_process(code, tmp_path)
    np.testing.assert_allclose(np.log(np.load(tmp_path / "out.npy")), ids_and_expected[1], atol=1e-4)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5", "saved", "a.tflite", "a.onnx"])
def test_perplexity_through_each_form_is_that_of_jaxlm(run_dir, text_file, tmp_path, capsys, name):
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install jaxlm[onnx]")
    assert convert("to-keras", run_dir, tmp_path / name) == 0
    capsys.readouterr()
    assert convert("verify", run_dir, tmp_path / name, "--text", text_file, "--max-tokens", 300) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("perplexity"))
    ours, theirs = (float(part.split()[-1]) for part in line.split(": ", 1)[1].split(","))
    assert f"{ours:.4g}" == f"{theirs:.4g}" and 1 < ours < 120
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_run_to_keras_to_run_is_bit_identical_and_training_goes_on(run_dir, corpus_dir, tmp_path, capsys):
    assert convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    run = tmp_path / "run"
    assert convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", run_dir / "vocabulary.json") == 0
    ours, theirs = load_model(run_dir), load_model(run)
    assert ours[1] == theirs[1]
    for first, second in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0]), strict=True):
        np.testing.assert_array_equal(first, second)
    assert jaxlm("evaluate", run, "--data", corpus_dir, "--max-tokens", 200) == 0
    before = float(capsys.readouterr().out.split("perplexity ")[1].split()[0])
    settings = ("--out", run, "--num-sampled", 20, "--batch-size", 3, "--sequence-length", 4)
    assert jaxlm("train", corpus_dir, *settings, *SIZES, "--steps", 2, "--learning-rate", 1e-9) == 0
    after = float(capsys.readouterr().out.split("exact perplexity ")[-1].split()[0])
    assert after < 1.5 * before  # it began with those weights: an untrained model is far above
    assert jaxlm("train", corpus_dir, *settings, *SIZES, "--steps", 4, "--learning-rate", 1e-9) == 0
    assert "going on from step 2" in capsys.readouterr().out
    assert jaxlm("train", corpus_dir, *settings[:-3], 5, *SIZES) == 2  # settings count from the first step on
    assert jaxlm("generate", run, "--num-words", 3) == 0
    assert convert("to-keras", run, tmp_path / "again.keras") == 0


def test_ids_are_ranked_by_frequency_on_the_way_in_and_put_back(run_dir, text_file, tmp_path, capsys):
    """The Keras model's ids are in any order; the exported model's are the same, and text is read with them."""
    vocabulary = load_model(run_dir)[1]
    shuffled = np.random.default_rng(0).permutation(len(vocabulary))
    lines = [f"{vocabulary.words[i]}\t{vocabulary.counts[i]}" for i in shuffled]
    (tmp_path / "words.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    run = tmp_path / "run"
    assert convert("from-keras", tmp_path / "model.keras", run, "--vocabulary", tmp_path / "words.txt") == 0
    assert "re-ranked" in capsys.readouterr().out
    imported, ranked, _ = load_model(run)
    assert ranked.counts == tuple(sorted(vocabulary.counts, reverse=True))
    original = load_model(run_dir)[0]
    for rank in (0, 5, len(vocabulary) - 1):  # the word's row moved with it
        keras_id = next(i for i, word in enumerate(shuffled) if vocabulary.words[word] == ranked.words[rank])
        np.testing.assert_array_equal(imported.embedding[rank], original.embedding[keras_id])
    assert convert("to-keras", run, tmp_path / "back.keras") == 0
    assert convert("verify", tmp_path / "back.keras", tmp_path / "model.keras") == 0
    assert convert("verify", run, tmp_path / "model.keras", "--text", text_file, "--max-tokens", 100) == 0
    assert jaxlm("prepare", text_file, "--vocabulary", run / "vocabulary.json", "--out", tmp_path / "data") == 0
    assert jaxlm("evaluate", run, "--data", tmp_path / "data", "--max-tokens", 50) == 0


def test_failures_leave_nothing_and_existing_files_stay(run_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "model.keras"
    out.write_bytes(b"precious")
    assert convert("to-keras", run_dir, out) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setitem(comparison.TOLERANCES, "float32", -1.0)  # no model is as near as that
    assert convert("to-keras", run_dir, out, "--overwrite") == 2
    assert "differs from the run" in capsys.readouterr().err
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    assert convert("to-keras", run_dir, out, "--overwrite") == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "ends in .keras"),
        ("no/where/a.keras", "does not exist"),
        ("directory.keras", "is a directory"),
        ("directory", "is a directory"),
        ("file", "is a file"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(run_dir, tmp_path, capsys, name, message):
    (tmp_path / "directory.keras").mkdir()
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    assert convert("to-keras", run_dir, tmp_path / name) == 2
    assert message in capsys.readouterr().err


def test_forms_that_there_are_not_are_refused(run_dir, tmp_path, capsys):
    assert convert("to-keras", run_dir, tmp_path / "a.tflite", "--last-only") == 2
    assert "--last-only" in capsys.readouterr().err
    assert convert("to-keras", run_dir, tmp_path / "a.keras", "--dtype", "int8") == 2
    assert "--int8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(run_dir, tmp_path):
    """A limit on the size of a file stands for the disk: writing beyond it fails as writing to a full disk does."""
    code = f"""
import resource, signal
from convert.cli import app
from jaxlm.cli import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for name in ("model.keras", "saved", "model.tflite"):
    code = run_command(lambda: app.cli(args=["to-keras", {str(run_dir)!r}, {str(tmp_path)!r} + "/" + name]))
    assert code == 2, name
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 3 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_verify_takes_any_two_forms_and_tells_them_apart(run_dir, tmp_path, capsys, random_run):
    from convert import export

    assert convert("to-keras", run_dir, tmp_path / "a.tflite") == 0
    assert convert("to-keras", run_dir, tmp_path / "a.h5") == 0
    assert convert("verify", tmp_path / "a.tflite", tmp_path / "a.h5") == 0
    export.export(random_run(), tmp_path / "other.keras")
    assert convert("verify", tmp_path / "other.keras", tmp_path / "a.h5") == 1
    assert "size of the vocabulary" in capsys.readouterr().out
    export.export(random_run(1, vocab_size=120, embedding_size=7, hidden_size=11), tmp_path / "same_size.keras")
    assert convert("verify", tmp_path / "same_size.keras", run_dir) == 1
    assert "they differ" in capsys.readouterr().out
    assert convert("verify", tmp_path / "nothing.keras", run_dir) == 2
    assert convert("verify", tmp_path / "a.h5", tmp_path / "a.tflite", "--text", tmp_path / "no.txt") == 2
    assert "--vocabulary" in capsys.readouterr().err


def test_int8_is_near_and_small(run_dir, tmp_path, random_run):
    from convert import export

    run = random_run(vocab_size=1000, embedding_size=32, hidden_size=48)  # smaller tensors are left as they are
    parity = export.export(run, tmp_path / "small.tflite", int8=True)
    export.export(run, tmp_path / "large.tflite")
    assert 1e-4 < parity.difference < 0.3
    assert (tmp_path / "small.tflite").stat().st_size < 0.4 * (tmp_path / "large.tflite").stat().st_size


def test_help_does_not_wait_for_keras():
    code = "import sys, convert.cli; sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'jax')))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_example_trains_a_keras_model(corpus_dir, tmp_path):
    text = (ROOT / "examples" / "train_keras_model.py").read_text(encoding="utf-8")
    script = tmp_path / "example.py"
    script.write_text(text.replace("256)", "6)").replace("LSTM(1024", "LSTM(9"), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, script, corpus_dir, "30"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "exact loss" in done.stdout and done.stdout.count("expected") == 19


def test_vocabularies_that_do_not_fit_are_refused(run_dir, tmp_path, capsys):
    assert convert("to-keras", run_dir, tmp_path / "model.keras") == 0
    words = json.loads((run_dir / "vocabulary.json").read_text(encoding="utf-8"))["words"]
    cases = {
        "short": ("\n".join(words[:-1]), "119 words"),
        "twice": ("\n".join([*words[:-1], "the"]), "comes 2 times"),
        "keras": ("\n".join(["[UNK]" if word == "<unk>" else word for word in words]), "--unk"),
        "bytes": ("the\n\udcff", "does not hold"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert convert("from-keras", tmp_path / "model.keras", tmp_path / "run", "--vocabulary", path) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    arguments = ("--vocabulary", tmp_path / "keras.txt", "--unk", "[UNK]")
    assert convert("from-keras", tmp_path / "model.keras", tmp_path / "run", *arguments) == 0
    assert convert("from-keras", tmp_path / "model.keras", tmp_path / "run", *arguments) == 2
    assert "exists already" in capsys.readouterr().err
