"""Events of a run for TensorBoard."""

import logging
import sys
from pathlib import Path
from typing import Any

from jaxlm.errors import MissingPackageError, require_packages

logger = logging.getLogger(__name__)


def event_writer(directory: Path, first_step: int) -> Any:
    """Returns a `tensorboardX.SummaryWriter` that drops events after step `first_step`; None without the package.

    tensorboardX imports PyTorch wherever it is installed. It is hidden, since that takes 1.5 s and 180 MB for nothing.
    """
    try:
        require_packages("tensorboard", "tensorboardX")
    except MissingPackageError as error:
        logger.info("No events for TensorBoard are written. %s", error)
        return None
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(directory), purge_step=first_step + 1)
