"""`RunModel`: a run's model, words and optimizer state, the input of every export."""

from typing import Any, NamedTuple

from convert.weights.optimizer_state import OptimizerState
from jaxlm.data.tokenization import Tokenization
from jaxlm.model.language_model import LanguageModel


class RunModel(NamedTuple):
    """A run's best model and its words. An imported run is in the ids of its Keras model."""

    model: LanguageModel
    words: tuple[str, ...]
    tokenization: Tokenization
    optimizer: OptimizerState | None = None  # with `keep_optimizer`
    dropped: tuple[str, ...] = ()  # words that are removed from texts
    description: dict[str, Any] | None = None  # JSON of the Keras model it came from, checked
