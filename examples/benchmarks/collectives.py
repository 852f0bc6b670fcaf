"""Bytes that the devices of a compiled program send each other, from its HLO."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


class Collective(NamedTuple):
    """One collective operation."""

    kind: str
    shapes: tuple[str, ...]  # of its results, such as "f32[8,64]"
    group: int  # devices that take part together

    @property
    def sizes(self) -> list[int]:
        """Bytes of each of its results on a device."""
        return list(map(_size, self.shapes))

    @property
    def wire(self) -> float:
        """Bytes that a device sends in a ring."""
        others = self.group - 1
        factor = {"all-reduce": 2 * others / self.group, "all-gather": others / self.group, "reduce-scatter": others}
        return sum(self.sizes) * factor.get(self.kind, others / self.group)


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a program, as `compiled.as_text()` prints it; a loop's body counts once."""
    pattern = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
    found = []
    for line in hlo.splitlines():
        if match := pattern.search(line):
            shapes = tuple(re.findall(r"\w+\[[\d,]*\]", match[1]))
            found.append(Collective(match[2], shapes, _group_size(match[3])))
    return found


def _group_size(attributes: str) -> int:
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):  # groups x members
        return int(match[2])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return match[1].count(",") + 1 if match else 1


def _size(shape: str) -> int:
    kind, dimensions = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()
    return BYTES[kind] * math.prod(int(n) for n in dimensions.split(",") if n)
