"""Tables of costs that belong to an n-best list of Kaldi, their scales and their sum."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from jaxlm.errors import InputError

Costs = Mapping[str, float]  # by key, `utterance-N`


@contextmanager
def named_line(name: str, number: int, line: str) -> Iterator[None]:
    """Adds the name of the file, the number and the text of a line to an `InputError`, which says what was expected."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}, line {number}: expected {error} Received: {line[:100]!r}.") from error


def is_number(text: str) -> bool:
    """Whether a text is a number, infinite or not."""
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def number_of(text: str, expected: str, worst: float = -math.inf) -> float:
    """Returns a finite number or `worst`, an infinite one; raises `InputError` for all other texts."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value == -worst:
        raise InputError(f"a number {expected}.")
    return value


def read_costs(lines: Iterable[str], name: str) -> dict[str, float]:
    """Reads a table of Kaldi, `utterance-N cost`, such as ac_cost or lm_cost. A cost may be infinite.

    Args:
      lines: without line ends.
      name: of the table, to name in errors.

    Raises:
      InputError: a line has another form, or a key that an earlier line has; names it.
    """
    costs: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with named_line(name, number, line):
            key, *values = line.split()
            if len(values) != 1:
                raise InputError("`utterance-N cost`.")
            if key in costs:
                raise InputError(f"each key once; {key} comes twice.")
            costs[key] = number_of(values[0], "after the key: `utterance-N cost`", worst=math.inf)
    return costs


def add_costs(tables: Mapping[str, Costs], scales: Mapping[str, float]) -> dict[str, float] | None:
    """Adds tables of costs, each times its scale: a key must be in all of them to be in the result.

    Args:
      tables: by name.
      scales: by name; 1 for other tables. Costs with a scale of 0 do not count, infinite or not.

    Returns:
      The sums by key; None without tables.

    >>> add_costs({"ac_cost": {"a-1": 9.0}, "dur_cost": {"a-1": 4.0}}, {"dur_cost": 0.5})
    {'a-1': 11.0}
    """
    total: dict[str, float] | None = None
    for name, table in tables.items():
        scale = scales.get(name, 1.0)
        scaled = {key: scale * cost if scale else 0.0 for key, cost in table.items()}
        total = scaled if total is None else {k: total[k] + scaled[k] for k in total.keys() & scaled.keys()}
    return total


def read_scales(options: Iterable[str], names: Sequence[str]) -> dict[str, float]:
    """Reads scales of tables of costs, `NAME=NUMBER`.

    Args:
      options: as given; NAME is the path of a table or the last part of it.
      names: paths of the tables.

    Returns:
      The scales by path.

    Raises:
      InputError: an option has another form, or belongs to no table or to several.

    >>> read_scales(["ac_cost=0.083"], ["exp/ac_cost", "exp/lm_cost"])
    {'exp/ac_cost': 0.083}
    """
    scales: dict[str, float] = {}
    for option in options:
        name, _, number = option.rpartition("=")
        found = {path for path in names if name in (path, path.rpartition("/")[2])}
        valid = re.fullmatch(r"[0-9.]+([eE][-+]?[0-9]+)?", number) and is_number(number) and float(number) < math.inf
        if len(found) != 1 or not valid or scales.keys() & found:
            tables = ", ".join(names) or "no tables"
            raise InputError(
                f"Invalid `scale`: expected NAME=NUMBER, at least 0, for one table of costs each (there are {tables})."
                f" Received: {option}."
            )
        scales[found.pop()] = float(number)
    return scales
