"""`AveragingTrigger`: begins to average the parameters when the validation loss no longer improves."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from jaxlm.parallel.processes import from_first
from jaxlm.training.optimizer import averaging_has_begun, start_averages
from jaxlm.training.state import TrainState

logger = logging.getLogger(__name__)


class AveragingTrigger:
    """The trigger of NT-ASGD (Merity et al. 2018, https://arxiv.org/abs/1708.02182, section 3).

    Args:
      patience: `average_patience`.
      losses: of earlier evaluations, oldest first.
    """

    def __init__(self, patience: int, losses: Iterable[float]):
        self.patience, self.losses = patience, list(losses)  # of evaluations before averaging begins

    def after_evaluation(self, step: int, state: TrainState, loss: float) -> TrainState:
        """Returns the state, in which averaging begins if it is time."""
        if not self.patience or averaging_has_begun(state.opt_state):
            return state
        self.losses.append(loss)
        if not from_first(no_longer_improves(self.losses, self.patience)):
            return state
        logger.info(
            "step %d: above the lowest loss of those more than %d evaluations ago: averaging begins",
            step,
            self.patience,
        )
        return dataclasses.replace(state, opt_state=start_averages(state.opt_state))


def no_longer_improves(losses: Sequence[float], patience: int) -> bool:
    """Returns whether the last loss is above the lowest one of those more than `patience` evaluations ago.

    >>> no_longer_improves([3.0, 3.2, 3.1], patience=2), no_longer_improves([3.0, 3.2, 2.9, 3.1], patience=2)
    (False, True)
    """
    earlier = losses[: -1 - patience]
    return bool(earlier) and losses[-1] > min(earlier)
