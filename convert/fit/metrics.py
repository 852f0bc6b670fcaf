"""The metrics that a model was compiled with, on validation data, from statistics of each label."""

import math
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np

from convert.keras_models.live_layers import library_name
from jaxlm.inference.perplexity import perplexity_of

ACCURACIES = {"categoricalaccuracy", "topkcategoricalaccuracy"}


class Metric(NamedTuple):
    """One compiled metric."""

    name: str  # in logs
    k: int | None  # a label of this rank or above it is right; None for the cross-entropy
    is_weighted: bool  # by `sample_weight`
    is_perplexity: bool = False
    mask_token_id: int | None = None  # a label that a perplexity leaves out

    @property
    def mode(self) -> str:
        """The direction in which it improves, as callbacks call it."""
        return "min" if self.k is None else "max"


class LabelStatistics(NamedTuple):
    """Statistics of a batch for metrics."""

    log_probabilities: np.ndarray  # [B, P], of the labels
    ranks: np.ndarray  # [B, P], 1 for the most likely word
    labels: np.ndarray  # [B, P]
    valid: np.ndarray  # [B, P] bool, the labels that a metric reads
    mask: np.ndarray  # [B, P] bool, those that it counts: also labels outside the vocabulary, as in Keras
    weights: np.ndarray  # [B, P], `sample_weight`


def open_metrics(model: Any, logits: bool) -> tuple[Metric, ...]:
    """Returns the compiled metrics that are computed, and warns of those that are not.

    Args:
      model: live, of Keras 3 or `tf_keras`.
      logits: whether it ends without a softmax.
    """
    compiled = getattr(model, "_compile_metrics", None) or getattr(model, "compiled_metrics", None)
    found: dict[str, Metric] = {}
    unknown = []
    for argument, is_weighted in (("_user_metrics", False), ("_user_weighted_metrics", True)):
        for each in keras.tree.flatten(getattr(compiled, argument, None)):
            if each is None:
                continue
            metric = _metric(each, is_weighted, logits)
            name = _name(each) if metric is None else _unique(metric.name, is_weighted, found)
            if metric is None:
                unknown.append(name)
            else:
                found[name] = metric._replace(name=name)
    if found or unknown:
        where = "without the probabilities of all words: call model.evaluate for it"
        missing = f"; and not {', '.join(unknown)} {where}" if unknown else ""
        warnings.warn(f"fit_keras computes metrics on validation data, not on training data{missing}", stacklevel=3)
    return tuple(found.values())


def _name(metric: Any) -> str:
    """Returns the name that Keras gives a metric, a string, a function or an object."""
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__))


def _unique(name: str, is_weighted: bool, taken: dict[str, Metric]) -> str:
    """Returns the name of a metric in logs, other than those before it, as Keras names it."""
    if name in taken and is_weighted:
        name = f"weighted_{name}"
    number = sum(other == name or other.rpartition("_")[0] == name for other in taken)
    return f"{name}_{number}" if name in taken else name


def _metric(metric: Any, is_weighted: bool, logits: bool) -> Metric | None:
    """Returns the `Metric` of a Keras metric, or None if it needs more than statistics of labels."""
    settings = metric.get_config() if hasattr(metric, "get_config") else {}
    if isinstance(metric, str):
        kind = "categorical_accuracy" if metric in ("accuracy", "acc") else metric
    else:
        kind = library_name(metric)
    kind = kind.replace("_", "").lower().removeprefix("sparse")
    if settings.get("label_smoothing") or settings.get("from_sorted_ids"):
        return None
    if kind in ACCURACIES:
        return Metric(_name(metric), settings.get("k", 5) if kind.startswith("topk") else 1, is_weighted)
    if kind not in ("categoricalcrossentropy", "perplexity") or settings.get("from_logits", False) != logits:
        return None
    return Metric(_name(metric), None, is_weighted, kind == "perplexity", settings.get("mask_token_id"))


class Means:
    """The loss of batches and their metrics, as means in Keras' sense.

    Args:
      metrics: to compute.
    """

    def __init__(self, metrics: tuple[Metric, ...]):
        self.metrics = metrics
        self.totals = {name: (0.0, 0.0) for name in ("loss", *(metric.name for metric in metrics))}

    def add(self, loss: float, size: int, measured: LabelStatistics | None) -> None:
        """Adds a batch of `size` examples."""
        sums = [(size * loss, float(size))]
        sums += [] if measured is None else [_sums(metric, measured) for metric in self.metrics]
        for name, (total, count) in zip(self.totals, sums, strict=True):
            before = self.totals[name]
            self.totals[name] = before[0] + total, before[1] + count

    def logs(self) -> dict[str, float]:
        """Returns the loss and the metrics by name."""
        logs = {name: float(total / count) if count else 0.0 for name, (total, count) in self.totals.items()}
        if not self.totals["loss"][1]:
            logs["loss"] = math.nan
        return logs | {each.name: perplexity_of(logs[each.name]) for each in self.metrics if each.is_perplexity}


def _sums(metric: Metric, measured: LabelStatistics) -> tuple[float, float]:
    """Returns the sum of a metric over the examples of a batch, and its divisor."""
    values = -measured.log_probabilities
    if metric.k is not None:
        values = np.isfinite(values) & (measured.ranks <= metric.k)
    weights = measured.weights if metric.is_weighted else np.ones_like(measured.weights)
    size, outputs = values.shape
    if metric.is_perplexity:
        weights = weights * (measured.labels != (-1 if metric.mask_token_id is None else metric.mask_token_id))
        return size * float((values * weights * measured.valid).sum() / weights.sum()), size
    total, count = (values * weights * measured.valid).sum(), (weights * measured.mask).sum()
    return float(total) / outputs, float(count) / outputs
