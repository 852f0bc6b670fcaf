"""`DeferredLosses`: fetches the loss of each training step while the next step runs."""

import math
from collections.abc import Callable

import jax

MAX_SKIPPED = 10  # steps in a row


class DeferredLosses:
    """Losses of training steps. Each is fetched when the next one is added, so that no step waits for it.

    Args:
      receive: called with each loss, the number that was added with it, and the steps that were skipped in a row
        because their loss was not finite, 0 if this one is.
      skipped_in_a_row: steps skipped just before the first one.
    """

    def __init__(self, receive: Callable[[float, int, int], None], skipped_in_a_row: int = 0):
        self.receive, self.skipped_in_a_row = receive, skipped_in_a_row
        self.pending: tuple[jax.Array, int] | None = None

    def add(self, loss: jax.Array, number: int) -> None:
        """Adds the loss of a step, and fetches the one before."""
        self.fetch()
        self.pending = (loss, number)

    def fetch(self) -> None:
        """Waits for the pending loss, if there is one."""
        if self.pending is None:
            return
        loss, number = float(self.pending[0]), self.pending[1]
        self.pending = None
        self.skipped_in_a_row = 0 if math.isfinite(loss) else self.skipped_in_a_row + 1
        self.receive(loss, number, self.skipped_in_a_row)
