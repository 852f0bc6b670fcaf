"""Averaging begins where the authors' code begins it."""

import numpy as np
import pytest

from jaxlm.runs.averaging import no_longer_improves


def first_by_the_authors(losses: list[float], nonmono: int) -> int | None:
    """The loop over epochs in main.py of Merity et al. 2018."""
    best_val_loss: list[float] = []
    for number, val_loss in enumerate(losses):
        if len(best_val_loss) > nonmono and val_loss > min(best_val_loss[:-nonmono]):
            return number
        best_val_loss.append(val_loss)
    return None


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_averaging_begins_at_the_evaluation_of_the_authors(patience):
    rng, found = np.random.default_rng(patience), []
    for _ in range(300):
        # falling, with noise and ties
        losses = [round(value, 1) for value in (np.linspace(7, 4, 30) + rng.normal(0, 0.3, 30)).tolist()]
        ours = (end - 1 for end in range(1, 31) if no_longer_improves(losses[:end], patience))
        found.append(next(ours, None))
        assert found[-1] == first_by_the_authors(losses, patience)
    assert len(set(found)) > 10
