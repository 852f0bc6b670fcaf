"""The event files of TensorBoard, and PyTorch, which is not imported for them."""

import subprocess
import sys

CODE = """
import sys
from jaxlm.runs.tensorboard import event_writer

with event_writer({directory!r}, 3) as writer:
    writer.add_scalar("loss", 2.5, 4)
assert "torch" not in sys.modules
try:
    import torch  # by the user, later
except ModuleNotFoundError as error:
    assert error.name == "torch" and "halted" not in str(error), error
"""


def test_events_are_written_without_pytorch(tmp_path):
    subprocess.run([sys.executable, "-c", CODE.format(directory=str(tmp_path))], check=True)
    (events,) = tmp_path.iterdir()
    assert b"loss" in events.read_bytes()
