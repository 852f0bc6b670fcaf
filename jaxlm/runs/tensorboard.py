"""`event_writer`: what TensorBoard shows of a run."""

import sys
from pathlib import Path
from typing import Any


def event_writer(directory: Path, first_step: int) -> Any:
    """Returns a `tensorboardX.SummaryWriter`. TensorBoard forgets what it had after step `first_step`.

    tensorboardX imports PyTorch wherever it is installed. It is hidden, since that takes 1.5 s and 180 MB for nothing.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(directory), purge_step=first_step + 1)
