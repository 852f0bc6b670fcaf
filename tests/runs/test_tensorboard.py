"""The event files of TensorBoard, as TensorFlow reads them, and PyTorch, which is not imported for them."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow

from jaxlm.runs import metrics, tensorboard
from jaxlm.runs.tensorboard import open_events

CODE = """
import sys
from pathlib import Path
from jaxlm.runs.tensorboard import open_events

events = open_events(Path({directory!r}), 3)
events.add(4, {{"loss": 2.5, "learning_rate": 0.125}})
events.close()
assert "torch" not in sys.modules
try:
    import torch  # by the user, later
except ModuleNotFoundError as error:
    assert error.name == "torch" and "halted" not in str(error), error
"""


def test_events_are_written_without_pytorch(tmp_path):
    subprocess.run([sys.executable, "-c", CODE.format(directory=str(tmp_path))], check=True)
    (path,) = tmp_path.iterdir()
    events = list(tensorflow.compat.v1.train.summary_iterator(str(path)))
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (4, 1)  # TensorBoard drops what was written after step 3
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert events[2].step == 4 and values == {"loss": 2.5, "learning_rate": 0.125}


def test_metrics_that_could_not_be_written_are_written_with_the_next_ones(tmp_path, monkeypatch):
    log = metrics.MetricsLog(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "METRICS_FILE", "no/where")
        log.add(20, loss=2.5)
    log.add(40, loss=2.0)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = list(tensorflow.compat.v1.train.summary_iterator(str(path)))[2:]
    rows = [{"step": event.step, "loss": event.summary.value[0].simple_value} for event in events]
    assert rows == metrics.read_metrics(tmp_path) == [{"step": 20, "loss": 2.5}, {"step": 40, "loss": 2.0}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_events_alone(tmp_path, monkeypatch, caplog):
    events = open_events(tmp_path, 0)
    events.file.close()
    events.file = type(events.file)("/dev/full")
    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", -1.0)
    events.add(1, {"loss": 2.5})
    events.add(2, {"loss": 2.5})
    events.close()
    assert [record.args[0].errno for record in caplog.records] == [errno.ENOSPC]
