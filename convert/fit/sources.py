"""Examples in all forms of `model.fit`: arrays, datasets, loaders and generators."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from jaxlm.errors import InputError, require

MAX_COUNTED = 10_000  # batches that are read to find the end of a pass

Seed = Sequence[int] | None  # to shuffle with; None keeps the order


def _no_hook() -> None: ...


class Examples(NamedTuple):
    """Examples, in batches."""

    batches: Callable[[Seed], Iterator[tuple[Any, ...]]]  # of one pass: x, y and maybe weights
    name: str  # of the arguments they came from, for errors
    ends: bool | None = True  # whether a pass ends; None if this is unknown before it is read
    on_begin: Callable[[], object] = _no_hook  # hooks of a PyDataset, around each epoch
    on_end: Callable[[], object] = _no_hook

    def first(self, steps: int | None) -> Iterator[tuple[Any, ...]]:
        """Yields the batches of a pass, or the first ones if a pass may have no end.

        Raises:
          InputError: the pass does not end, and `steps` is None.
        """
        steps_name = "steps_per_epoch" if self.name == "x" else "validation_steps"
        is_known = steps is not None or self.ends is not False
        require(is_known, steps_name, f"a number for an endless `{self.name}`", steps)
        limit = math.inf if self.ends else steps or MAX_COUNTED
        self.on_begin()
        for number, batch in enumerate(self.batches(None)):
            if number == limit:
                require(steps is not None, steps_name, f"a number for `{self.name}` of unknown length", steps)
                break
            yield batch
        self.on_end()


def open_examples(x: Any, y: Any, weights: Any, batch_size: int, name: str = "x") -> Examples:
    """Opens arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader` or a Python generator.

    Args:
      x: `[N, T]` ids, or a dataset of batches of ids, labels and maybe weights.
      y: `[N, T]` or `[N]` labels; None for a dataset.
      weights: `[N, T]` or `[N]`, or None.
      batch_size: of arrays.
      name: of the argument.

    Raises:
      InputError: it is something else, or the arrays do not fit each other.
    """
    kinds = {kind.__name__ for kind in type(x).__mro__}
    is_stream = callable(getattr(x, "__next__", None))
    if not is_stream and not kinds & {"PyDataset", "Sequence", "DatasetV2", "DataLoader"}:
        return _open_arrays(x, y, weights, batch_size, name)
    require(y is None and weights is None, "y", f"None with a dataset, which has it in `{name}`", type(y).__name__)
    if is_stream:
        return _open_stream(x, name)
    if "DatasetV2" in kinds:
        ends = {-1: False, -2: None}.get(int(x.cardinality()), True)
        return Examples(lambda seed: (_tuple(batch, name) for batch in x.as_numpy_iterator()), name, ends)
    if "DataLoader" in kinds:
        return Examples(lambda seed: (_tuple(batch, name) for batch in x), name, hasattr(x.dataset, "__len__"))
    length = x.num_batches if hasattr(x, "num_batches") else len(x)

    def batches(seed: Seed) -> Iterator[tuple[np.ndarray, ...]]:
        shuffled = seed is not None and length is not None
        for i in np.random.default_rng(seed).permutation(length) if shuffled else _numbers(length):
            yield _tuple(x[int(i)], name)

    # tf_keras has no hook at the start
    return Examples(batches, name, length is not None, getattr(x, "on_epoch_begin", _no_hook), x.on_epoch_end)


def _numbers(length: int | None) -> Iterable[int]:
    return itertools.count() if length is None else range(length)


def _open_stream(stream: Iterator[Any], name: str) -> Examples:
    """Opens a Python generator. It is read once: its first batches are kept until training has read them."""
    kept: list[tuple[Any, ...]] = []
    passes = itertools.count()

    def batches(seed: Seed) -> Iterator[tuple[Any, ...]]:
        if next(passes) == 0:  # the pass that counts
            for batch in stream:
                kept.append(_tuple(batch, name))
                yield kept[-1]
        while kept:
            yield kept.pop(0)
        for batch in stream:
            yield _tuple(batch, name)

    return Examples(batches, name, False)


def _tuple(batch: Any, name: str) -> tuple[Any, ...]:
    """Returns the arrays of a batch; y and the weights are one array each."""
    fits = isinstance(batch, tuple | list) and len(batch) in (2, 3)
    received = [type(part).__name__ for part in batch[:4]] if isinstance(batch, tuple | list) else type(batch).__name__
    require(fits and batch[1] is not None, name, "batches of (x, y) or (x, y, sample_weight)", received)
    for part in keras.tree.flatten(batch):
        if hasattr(part, "to_tensor") or type(part).__name__ == "RaggedTensorValue":
            raise InputError(f"Invalid `{name}`: expected batches that are not ragged. Map `.to_tensor()` over them.")
    arrays = tuple(_map_arrays(partial(_as_array, name=name), part) for part in batch if part is not None)
    shapes = [array.shape for array in keras.tree.flatten(arrays)]
    require(all(shapes), name, "batches of examples; a dataset needs `.batch()`", shapes)
    return arrays[0], *map(_only, arrays[1:], ("y", "sample_weight"))


def to_arrays(x: Any, y: Any, weights: Any, name: str) -> tuple[Any, ...]:
    """Returns x, y and the weights, unless they are None, as arrays; x may be a nesting of them.

    Raises:
      InputError: one of them is something else, or they do not fit each other.
    """
    parts = ((x, name), (y, "y"), (weights, "sample_weight"))[: 2 if weights is None else 3]
    x, *rest = [_map_arrays(partial(_array, name=part_name), part) for part, part_name in parts]
    arrays = (x, *map(_only, rest, ("y", "sample_weight")))
    sizes = [len(array) for array in keras.tree.flatten(arrays)]
    require(min(sizes) == max(sizes) > 0, name, "arrays with the same number of examples, at least one", sizes)
    return arrays


def _only(arrays: Any, name: str) -> np.ndarray:
    """Returns the array of y or of the weights, which may be in a dict or a list, as the outputs of a model are."""
    leaves: list[np.ndarray] = keras.tree.flatten(arrays)
    require(len(leaves) == 1, name, "one array, or a dict with one", f"{len(leaves)} arrays")
    return leaves[0]


def _open_arrays(x: Any, y: Any, weights: Any, batch_size: int, name: str) -> Examples:
    arrays = to_arrays(x, y, weights, name)
    size = len(arrays[1])

    def batches(seed: Seed) -> Iterator[tuple[np.ndarray, ...]]:
        order = None if seed is None else np.random.default_rng(seed).permutation(size)
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield tuple(keras.tree.map_structure(lambda array, rows=rows: array[rows], arrays))

    return Examples(batches, name)


def _map_arrays(to_array: Callable[[Any], np.ndarray], x: Any) -> Any:
    """Returns an array, or the same nesting of arrays if x is several of them, and not the rows of one."""
    if isinstance(x, dict):
        return {name: _map_arrays(to_array, part) for name, part in x.items()}
    if not _is_several(x):
        return to_array(x)
    parts = [_map_arrays(to_array, part) for part in x]
    return tuple(parts) if isinstance(x, tuple) else parts


def _is_several(x: Any) -> bool:
    if not isinstance(x, list | tuple):
        return isinstance(x, dict)
    return bool(x) and all(_is_several(part) or len(getattr(part, "shape", ())) for part in x)


def _array(value: Any, name: str) -> np.ndarray:
    expected = "an array, a dataset or a generator" if name in ("x", "validation_data") else "an array"
    if hasattr(value, "to_tensor"):
        raise InputError(f"Invalid `{name}`: expected {expected}, not ragged. Fill it up with `.to_tensor()`.")
    array = _as_array(value, name)
    require(array.ndim >= 1, name, expected, type(value).__name__)
    require(array.dtype.kind in "biuf", name, f"{expected} of numbers", array.dtype.name)
    return array


def _as_array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"Invalid `{name}`: expected arrays that are not ragged. Received: {error}") from error
    if array.dtype.kind in "SUT" or (array.dtype.kind == "O" and isinstance(next(array.flat, None), str | bytes)):
        expected = "numbers" if name == "sample_weight" else "integer ids"
        raise InputError(
            f"Invalid `{name}`: expected {expected}. Received: strings; turn words into ids with the vocabulary of the"
            " model first, for example with a keras.layers.TextVectorization in `dataset.map`, or applied to the array."
        )
    return array
