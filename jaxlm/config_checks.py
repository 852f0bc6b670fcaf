"""Checks of the fields of a config."""

import math
from dataclasses import fields
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlm.errors import require

EXPECTED = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}


def require_types(config: Any) -> None:
    """Checks each field against its type; a float may be given as an integer."""
    types = get_type_hints(type(config))
    for field in fields(config):
        kind, value = types[field.name], getattr(config, field.name)
        if get_origin(kind) is Literal:
            require(isinstance(value, str) and value in get_args(kind), field.name, f"one of {get_args(kind)}", value)
        elif get_origin(kind) is tuple:
            require(isinstance(value, tuple), field.name, "a tuple", value)
            for entry in value:
                require_type(field.name, entry, get_args(kind)[0])
        else:
            require_type(field.name, value, kind)


def require_type(name: str, value: Any, kind: type) -> None:
    """Checks the type of a value; a float may be given as an integer, and must be finite."""
    right = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    right = right and (kind is not float or math.isfinite(value))
    require(right, name, EXPECTED.get(kind, f"a {kind.__name__}"), value)


def require_integer(name: str, value: Any, lowest: int) -> None:
    """Checks that an argument is an integer, of Python or NumPy, and not below the lowest value."""
    fits = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest
    require(fits, name, f"an integer of at least {lowest}", value)


def require_at_least(config: Any, lowest: int, *names: str) -> None:
    """Checks that fields are not below the lowest value."""
    for name in names:
        require(getattr(config, name) >= lowest, name, f"at least {lowest}", getattr(config, name))


def require_seed(seed: int) -> None:
    """Raises `InputError` unless a seed is in the range in which all seeds of JAX differ."""
    require(0 <= seed < 2**32, "seed", "an integer from 0 to 4294967295", seed)
