"""`keras_ids.npy`: the order of a run's ids in the Keras model it came from. Only this module converts between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from convert.weights.optimizer_state import OptimizerState
from convert.weights.table import TABLES, aligned_empty
from jaxlm.model.language_model import LanguageModel
from jaxlm.runs.keras_files import KERAS_IDS_FILE, read_keras_ids


def frequency_order(counts: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """Sorts ids by decreasing frequency, the order that the log-uniform sampler expects.

    Args:
      counts: `[V]` occurrences of each word.

    Returns:
      The ids by decreasing count, `[V]` int64, equal counts by id; None if the ids are already sorted.

    References:
      `tf.random.log_uniform_candidate_sampler`, which expects the same order.

    >>> frequency_order([2, 9, 2])
    array([1, 0, 2])
    """
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    return None if np.array_equal(order, np.arange(order.size)) else order


class KerasIds(NamedTuple):
    """The Keras id of each of a run's ids."""

    ids: np.ndarray  # [V] int64, a permutation

    def save(self, directory: Path) -> None:
        """Writes the ids into a run directory."""
        np.save(directory / KERAS_IDS_FILE, self.ids)

    @classmethod
    def load(cls, directory: Path, vocab_size: int) -> "KerasIds | None":
        """Reads the ids of a run; None if its ids are those of Keras.

        Raises:
          InputError: the file is damaged.
        """
        ids = read_keras_ids(directory, vocab_size)
        return None if ids is None else cls(ids)

    def tokens_for_keras(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the Keras ids, `[N]` int32, of a text in the run's ids."""
        return self.ids[tokens].astype(np.int32)

    def words_for_keras(self, words: Sequence[str]) -> tuple[str, ...]:
        """Returns a run's words in the order of the Keras ids."""
        return tuple(words[i] for i in np.argsort(self.ids))

    def model_for_keras(
        self, model: LanguageModel, optimizer: OptimizerState | None
    ) -> tuple[LanguageModel, OptimizerState | None]:
        """Returns a run's model, and its optimizer state, in the order of the Keras ids."""
        return _reorder(model, optimizer, np.argsort(self.ids))

    def model_for_run(
        self, model: LanguageModel, optimizer: OptimizerState | None
    ) -> tuple[LanguageModel, OptimizerState | None]:
        """The inverse of `model_for_keras`."""
        return _reorder(model, optimizer, self.ids)


def _reorder(
    model: LanguageModel, optimizer: OptimizerState | None, index: np.ndarray
) -> tuple[LanguageModel, OptimizerState | None]:
    """Makes word i of the result word `index[i]` of `model`."""
    graphdef, params = nnx.split(model, nnx.Param)
    model = nnx.merge(graphdef, jax.device_put(_reorder_rows(nnx.to_pure_dict(params), index)))
    if optimizer is not None:
        slots = {slot: _reorder_rows(arrays, index) for slot, arrays in optimizer.slots.items()}
        optimizer = optimizer._replace(slots=slots)
    return model, optimizer


def _reorder_rows(weights: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
    """Reorders the tables among weights, or among an optimizer's moments, by their jaxlm names."""
    reordered = {}
    for name in TABLES:
        if name in weights:
            table = np.asarray(weights[name])
            reordered[name] = aligned_empty(table.shape, table.dtype)
            np.take(table, index, axis=0, out=reordered[name], mode="clip")  # this mode needs no buffer
    return weights | reordered
