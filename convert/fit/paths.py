"""Arrays in a `TrainState` or a part of one, by their path."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlm.training.state import TrainState


def put_path(tree: dict[str, Any], path: Sequence[Any], value: Any) -> None:
    """Puts a value into nested dicts; missing ones are made."""
    *folders, name = path
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = value


def get_path(tree: Any, path: Sequence[Any]) -> Any:
    """Returns the array at a path."""
    for name in path:
        tree = getattr(tree, name) if isinstance(name, str) and hasattr(tree, name) else tree[name]
    return tree


def replace_path(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """Returns a state, or a part of one, with another array at a path."""
    if not path:
        return value
    name, *rest = path
    if isinstance(tree, TrainState):
        return dataclasses.replace(tree, **{name: replace_path(getattr(tree, name), rest, value)})
    if isinstance(tree, dict):
        return tree | {name: replace_path(tree[name], rest, value)}
    items = [replace_path(item, rest, value) if i == name else item for i, item in enumerate(tree)]
    return type(tree)(items)
