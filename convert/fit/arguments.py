"""Checks of the arguments of `fit_keras`: numbers, one number per class, and initial values."""

import inspect
from collections.abc import Callable, Container, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np

from convert.fit.examples import Shape
from convert.fit.network import Network
from jaxlm.config_checks import require_integer
from jaxlm.errors import InputError, require


def refuse_others(other: Mapping[str, Any], function: Callable) -> None:
    """Raises `InputError` for the first argument in `other` that is not None: `function` has none of these."""
    for argument, value in other.items():
        if value is not None:  # as wrappers pass it
            close = get_close_matches(argument, inspect.signature(function).parameters, 1, 0.65)
            advice = f"did you mean `{close[0]}`?" if close else "leave it out."
            raise InputError(f"{function.__name__} has no argument `{argument}`; {advice}")


def check_numbers(validation_freq: Any, numbers: Mapping[str, Any]) -> None:
    """Raises `InputError` unless `numbers`, such as `batch_size`, are positive integers or None; `epochs` may be 0."""
    for name, number in numbers.items():
        if number is not None or name == "epochs":
            require_integer(name, number, 0 if name == "epochs" else 1)
    if isinstance(validation_freq, str) or not isinstance(validation_freq, Container):  # of epochs
        require_integer("validation_freq", validation_freq, 1)


def class_counts(counts: Any, vocab_size: int) -> np.ndarray:
    """Returns the argument `counts` as int64 `[V]`."""
    array = np.asarray(counts)
    fits = array.shape == (vocab_size,) and array.dtype.kind in "iuf"
    fits = fits and bool(np.all((array >= 0) & (array < 2**63) & (array == np.rint(array))))  # no relative frequencies
    expected = f"{vocab_size} whole numbers of at least 0, one per class"
    require(fits, "counts", expected, f"{array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def class_weights(class_weight: Mapping[int, float], vocab_size: int) -> np.ndarray:
    """Returns the weight of each class, `[V]`."""
    weights = np.ones(vocab_size, np.float32)
    require(isinstance(class_weight, Mapping), "class_weight", "a dict from class to weight", class_weight)
    for label, weight in class_weight.items():
        is_class = isinstance(label, Real) and 0 <= label < vocab_size and label == int(label)
        require(is_class, "class_weight", f"classes from 0 to {vocab_size - 1}", label)
        number = np.asarray(weight)
        is_weight = number.ndim == 0 and number.dtype.kind in "biuf" and bool(np.isfinite(number))
        require(is_weight, "class_weight", "finite weights", weight)
        weights[int(label)] = number
    return weights


def check_shape(network: Network, shape: Shape, name: str, size_name: str) -> None:
    """Raises `InputError` if the batches of an argument do not fit the states of a stateful model."""
    size = network.batch_size
    if size is not None:
        require(shape.batch_size == size, size_name, f"{size}, as the stateful model has", shape.batch_size)
        expected = f"a multiple of {size} examples of equal length, for a stateful model"
        require(shape.is_regular, name, expected, "another number or length")
        require(not shape.is_masked, name, "no 0 for a stateful model that masks it", "0")


def check_initial_values(network: Network, initial_biases: Any, initial_embeddings: Any) -> None:
    """Raises `InputError` if a model cannot start at these initial values, or if their tables are frozen."""
    present = {link.path[1] for link in network.links if link.path[0] == "tables"}
    for argument, value, allowed, tables, without in (
        ("initial_biases", initial_biases, "unigram", {"biases"}, "a softmax without biases"),
        ("initial_embeddings", initial_embeddings, "counts", {"embedding", "weights"}, "a body other than LSTMs"),
    ):
        if value is None:
            continue
        require(isinstance(value, str) and value == allowed, argument, f"None or {allowed!r}", value)
        require(tables <= present, argument, f"None for {without}", value)
        frozen = tables.intersection(network.frozen)
        require(not frozen, argument, f"None for tables that are not trainable: {', '.join(sorted(frozen))}", value)
