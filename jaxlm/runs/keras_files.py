"""The files of a run that was imported from Keras: the order of its ids in Keras, and the JSON of its source model."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import InputError
from jaxlm.files import read_array, read_json

KERAS_MODEL_FILE = "keras_model.json"  # missing if Keras 3 cannot rebuild the model
KERAS_MODEL_FORMAT = 1
KERAS_IDS_FILE = "keras_ids.npy"  # missing if the ids are the same


def read_keras_model(directory: Path) -> dict[str, Any] | None:
    """Reads keras_model.json, which is untrusted input; None if there is none.

    Raises:
      InputError: the file is damaged, or of another format.
    """
    path = directory / KERAS_MODEL_FILE
    return read_json(path, KERAS_MODEL_FORMAT) if path.exists() else None


def read_keras_ids(directory: Path, vocab_size: int) -> np.ndarray | None:
    """Reads the Keras id of each of a run's ids, `[V]` int64; None if they are the same.

    Raises:
      InputError: the file is damaged, or is not a permutation.
    """
    path = directory / KERAS_IDS_FILE
    if not path.exists():
        return None
    ids = read_array(path)
    if ids.dtype != np.int64 or not np.array_equal(np.sort(ids, axis=None), np.arange(vocab_size)):
        raise InputError(f"{path} is damaged: expected every id from 0 to {vocab_size - 1} once.")
    return ids
