"""The table of `jaxlm doctor` tells what is wrong with a machine, a corpus or a run."""

import shutil

import jax
import numpy as np
import pytest

from jaxlm.runs import unused_gpu
from jaxlm.runs.doctor import examine


def wrong(path) -> dict[str, str]:
    return {finding.subject: finding.result for finding in examine(path) if not finding.is_good}


def test_nothing_is_wrong_with_this_machine_and_intact_files(corpus_dir, run_dir):
    for path in (None, corpus_dir, run_dir):
        findings = {finding.subject: finding.result for finding in examine(path)}
        assert not wrong(path)
        assert findings["jax"] and "cpu" in findings["devices"] and findings["free disk"].endswith("GB")
    assert findings["config.json"] == "intact"
    assert findings["checkpoint 60"] == "intact, written on 1 x 1 devices, 1 process(es), cpu"


@pytest.mark.parametrize(
    ("plugin", "chosen", "expected"),
    [
        (False, {}, f"pip install 'jax[cuda13]=={jax.__version__}'"),
        (True, {"CUDA_VISIBLE_DEVICES": "0"}, "its warning has the reason"),
        (False, {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (True, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),  # SLURM, for a job without a GPU
        (True, {"JAX_PLATFORM_NAME": "cpu"}, ""),
    ],
)
def test_a_gpu_that_jax_does_not_use_is_told(plugin, chosen, expected, tmp_path, monkeypatch):
    (tmp_path / "nvidia3").touch()  # a container may have any one
    monkeypatch.setattr(unused_gpu, "DRIVER_FILES", [f"{tmp_path}/nvidia[0-9]*"])
    monkeypatch.setattr(unused_gpu.importlib.util, "find_spec", lambda _: plugin)
    for name in ("CUDA_VISIBLE_DEVICES", *unused_gpu.PLATFORM_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert expected in wrong(None).get("devices", "") and bool(wrong(None)) == bool(expected)


@pytest.mark.parametrize(
    ("file", "subject"),
    [
        ("config.json", "config.json"),
        ("vocabulary.json", "vocabulary.json"),
        ("checkpoints/60/progress.json", "checkpoint 60"),
        ("checkpoints/60/state/tables/weights/0.0", "checkpoint 60"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(run_dir, tmp_path, file, subject):
    shutil.copytree(run_dir, tmp_path / "run")
    data = bytearray((tmp_path / "run" / file).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "run" / file).write_bytes(data)
    assert set(wrong(tmp_path / "run")) == {subject}


def test_a_damaged_file_without_a_checksum_is_named(run_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    np.save(run / "keras_ids.npy", np.arange(120)[::-1])
    assert not wrong(run)
    np.save(run / "keras_ids.npy", np.arange(120.0))  # refused by `jaxlm-convert`, too
    (run / "keras_model.json").write_text('{"model": {}}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{\n3\n")
    found = wrong(run)
    assert set(found) == {"metrics.jsonl", "keras_model.json", "keras_ids.npy"}
    assert found["metrics.jsonl"].startswith("2 of ")


def test_a_damaged_or_changed_corpus_is_named(corpus_dir, run_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "data")
    tokens = np.load(tmp_path / "data" / "train.npy")
    tokens[0] += 1
    np.save(tmp_path / "data" / "train.npy", tokens)
    assert "train.npy is damaged" in wrong(tmp_path / "data")["corpus"]
    assert "neither a run nor a corpus" in wrong(tmp_path / "nowhere").popitem()[1]
