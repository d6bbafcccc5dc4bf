"""What a compiled program holds and what its devices send each other, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(", re.MULTILINE)
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all)"
)


class Held(NamedTuple):
    """An array of a program: the operation that makes it, its type and shape on one device."""

    made_by: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether it holds features, parameters or gradients."""
        return self.dtype.startswith(("f", "bf"))


def arrays(text: str) -> set[Held]:
    """Every array that the program of a device makes or is given."""
    results = set()
    for result, made_by in _RESULT.findall(text):
        for dtype, dims in _SHAPE.findall(result):
            results.add(Held(made_by, dtype, tuple(int(n) for n in dims.split(",") if n)))
    return results


def collectives(text: str) -> set[Held]:
    """The arrays that devices send each other."""
    return {array for array in arrays(text) if _COLLECTIVE.match(array.made_by)}
