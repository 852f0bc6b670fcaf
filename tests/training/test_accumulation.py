"""Gradient accumulation refuses states whose gradients it cannot keep as rows."""

import numpy as np
import pytest
from helpers import make_random_model

from jaxlm.config import TrainConfig
from jaxlm.data.batches import Batch
from jaxlm.errors import InputError
from jaxlm.training.accumulation import Waiting, accumulate
from jaxlm.training.state import TrainState


def test_the_exact_loss_is_refused():
    state = TrainState.create(make_random_model(), TrainConfig(loss="full", batch_size=2))
    ids = np.ones((2, 3), np.int32)
    with pytest.raises(InputError, match="`loss`: expected a sampled one with gradient accumulation"):
        accumulate(state, Waiting((), None), Batch(ids, ids))
