"""The event files of TensorBoard, as TensorFlow reads them, and PyTorch, which is not imported for them."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow

from jaxlm.runs import tensorboard
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
