"""Checkpoints: which are kept, what comes back, and saves beside training."""

import concurrent.futures
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import InputError
from jaxlm.runs import checkpoint
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.progress import Progress


def state(value: float) -> dict:
    return {"tables": {"biases": jnp.full(5, value)}, "key": jax.random.key(int(value)), "step": jnp.int32(value)}


def restored(checkpoints: Checkpoints, step: int) -> dict:
    return checkpoints.restore(step, jax.eval_shape(lambda: state(0.0)))


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, loss in [(1, 5.0), (2, 3.0), (3, None), (4, 4.0), (5, None), (6, None)]:
        checkpoints.save(step, state(step), Progress(float(step), loss))
    assert checkpoints.steps() == [6, 5, 2]
    assert checkpoints.latest_step() == 6 and checkpoints.best_step() == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
    for step in (5, 6):
        (checkpoints.directory / str(step) / "state" / "step" / "0").write_text("damaged")
    resumed = Checkpoints(tmp_path)  # from step 2, whose successors count before the damaged ones
    assert resumed.latest_step() == 2
    for step, left in [(3, [6, 5, 3, 2]), (4, [6, 5, 4, 3, 2]), (5, [6, 5, 4, 2]), (7, [7, 5, 2])]:
        resumed.save(step, state(step), Progress(1.0))
        assert resumed.steps() == left


def test_arrays_keys_and_progress_come_back(tmp_path):
    checkpoints, progress = Checkpoints(tmp_path), Progress(0.1 + 0.2, 1 / 3, (1e-45, 2.5), (20, 1e9 / 7))
    checkpoints.save(7, state(7.0), progress)
    again = Checkpoints(tmp_path)
    assert again.progress(7) == progress
    ours = restored(again, 7)
    np.testing.assert_array_equal(ours["tables"]["biases"], 7.0)
    assert ours["key"] == jax.random.key(7) and ours["step"] == 7


def test_other_shapes_and_missing_arrays_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state(7.0), Progress(1.0))
    with pytest.raises(InputError, match="expected tables/biases of shape \\(6,\\). Received: \\(5,\\)"):
        checkpoints.restore(7, {"tables": {"biases": jax.ShapeDtypeStruct((6,), jnp.float32)}})
    with pytest.raises(InputError, match="expected weights of shape .* Received: nothing"):
        checkpoints.restore(7, {"weights": jax.ShapeDtypeStruct((6,), jnp.float32)})


def test_without_checkpoints_there_is_no_best(tmp_path):
    assert Checkpoints(tmp_path).latest_step() is None
    with pytest.raises(InputError, match="has no checkpoint yet"):
        Checkpoints(tmp_path).best_step()


def test_on_an_accelerator_arrays_are_written_while_the_next_step_changes_them(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint.jax, "default_backend", lambda: "gpu")
    checkpoints, arrays = Checkpoints(tmp_path), state(3.0)
    checkpoints.save(3, arrays, Progress(1.0))
    for leaf in (arrays["tables"]["biases"], arrays["key"], arrays["step"]):
        leaf.delete()  # as a step does that was given them
    checkpoints.wait()
    assert Checkpoints(tmp_path).is_intact(3)
    np.testing.assert_array_equal(restored(checkpoints, 3)["tables"]["biases"], 3.0)
    assert restored(checkpoints, 3)["key"] == jax.random.key(3)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
        checkpoints.save(4, state(4.0), Progress(1.0))
        with pytest.raises(OSError, match="checkpoint 4 could not be written: .*No space left"):
            checkpoints.wait()
        checkpoints.save(5, state(5.0), Progress(1.0))
        concurrent.futures.wait([checkpoints.pending])
    checkpoints.save(6, state(6.0), Progress(1.0))  # though the one before failed
    checkpoints.wait()
    assert checkpoints.steps() == [6, 3] and "checkpoint 5 could not be written" in caplog.text


def test_a_save_that_fails_leaves_the_checkpoints_before_and_can_be_tried_again(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), Progress(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="checkpoint 2 could not be written: .*No space left"):
            checkpoints.save(2, state(2.0), Progress(2.0))
    assert checkpoints.steps() == [1] and not list((tmp_path / "checkpoints").glob("*.partial"))
    checkpoints.save(2, state(2.0), Progress(2.0))
    assert Checkpoints(tmp_path).latest_step() == 2


def put(path: Path, *files: str) -> Callable[[], bool]:
    """Makes a file, or a directory with some files, and returns a check that it is still there."""
    if not files:
        path.write_text("mine")
        return lambda: path.read_text() == "mine"
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    return lambda: all((path / name).read_text() == "mine" for name in files)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (".nfs0000000000a1", ()),
        ("3", ()),  # a file that is named like a checkpoint
        ("notes.partial", ()),
        ("4.partial", ()),
        ("backup", ("state/tables",)),
        ("1 (copy)", ("state/x", "progress.json")),
        ("05", ("state/x",)),
        ("٣", ("state/x",)),  # a digit that Python reads, and jaxlm does not write
        ("7", ("mine.txt",)),  # a directory that is named like a checkpoint
        ("best.partial", ("x",)),
    ],
)
def test_what_others_put_beside_the_checkpoints_stays_and_does_no_harm(tmp_path, name, files):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), Progress(1.0))
    is_there = put(tmp_path / "checkpoints" / name, *files)
    for step in (2, 5, 6, 8):
        checkpoints.save(step, state(step), Progress(1.0))
    assert is_there() and checkpoints.steps() == [8, 6]
    assert checkpoints.latest_step() == checkpoints.best_step() == 8


def test_a_link_to_a_checkpoint_stays_and_one_cut_off_goes(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    (tmp_path / "run").mkdir()
    checkpoints.save(1, state(1.0), Progress(1.0))
    (tmp_path / "run" / "checkpoints" / "1").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints" / "1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints" / "2.partial").mkdir()
    for step in (3, 4, 5):
        checkpoints.save(step, state(step), Progress(1.0))
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1", "4", "5"]
    assert (tmp_path / "elsewhere" / "progress.json").exists()


def test_something_else_in_the_place_of_a_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "2").write_text("mine")
    with pytest.raises(OSError, match="checkpoint 2 could not be written: .* not a checkpoint; move it away"):
        checkpoints.save(2, state(2.0), Progress(1.0))
    assert (tmp_path / "checkpoints" / "2").read_text() == "mine"


def test_saving_replaces_no_hook_of_the_process(tmp_path, monkeypatch):
    def hook(_):
        pass

    monkeypatch.setattr(sys, "unraisablehook", hook)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), Progress(1.0))
    monkeypatch.setattr(checkpoint, "require_space", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="checkpoint 2 could not be written"):
        checkpoints.save(2, state(2.0), Progress(2.0))
    assert sys.unraisablehook is hook
