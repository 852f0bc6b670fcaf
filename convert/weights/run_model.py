"""`RunModel`: a run's model, words and optimizer state, as every export takes them."""

from typing import Any, NamedTuple

from convert.weights.optimizer_state import OptimizerState
from jaxlm.data.tokenization import Tokenization
from jaxlm.model.language_model import LanguageModel


class RunModel(NamedTuple):
    """A run's best model and its words, in the ids of the Keras model it came from, if it was imported."""

    model: LanguageModel
    words: tuple[str, ...]
    tokenization: Tokenization
    optimizer: OptimizerState | None = None  # only if asked for
    dropped: tuple[str, ...] = ()  # words that are left out of texts
    description: dict[str, Any] | None = None  # JSON of the Keras model it came from, checked
