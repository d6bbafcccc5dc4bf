"""How often the loops of a compiled program turn: the few scalars that decide it, worked out."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
_SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "optimization-barrier", "reshape")
_OF_TWO: dict[str, Callable[[Any, Any], int]] = {
    "add": operator.add,
    "and": operator.and_,
    "maximum": max,
    "minimum": min,
    "multiply": operator.mul,
    "or": operator.or_,
    "subtract": operator.sub,
}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "EQ": operator.eq,
    "GE": operator.ge,
    "GT": operator.gt,
    "LE": operator.le,
    "LT": operator.lt,
    "NE": operator.ne,
}
_MOST = 2**31  # rounds; more are taken for a loop that never ends


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation.

    root: whether it is what its computation gives back.
    cycles: the compiler's estimate of one run; None where it gives none.
    runs: how often it runs in a step.
    """

    name: str
    kind: str
    result: str
    rest: str
    root: bool = False
    cycles: int | None = None
    runs: int = 0

    @property
    def source(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """The names of what it is computed from; `name#1` is element 1 of a tuple called `name`."""
        return re.findall(r"%([\w.-]+(?:#\d+)*)", self.rest.partition("), ")[0])

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        names = [n for found in _CALLED.findall(self.rest) for n in found.strip("{}").split(",")]
        return [n.strip().lstrip("%") for n in names]


Table = dict[str, Operation]
Tables = Callable[[str], Table]
Value = Any  # an int, a tuple of thunks, or None: not known
Thunk = Callable[[], Value]


def inputs(
    op: Operation, table: Table, args: tuple[Thunk, ...], tables: Tables
) -> tuple[Thunk, ...]:
    """The operands of an operation of `table`, whose parameters are `args`."""
    return tuple(functools.partial(value, name, table, args, tables) for name in op.operands)


def value(name: str, table: Table, args: tuple[Thunk, ...], tables: Tables) -> Value:
    """What an operation comes to where that follows from constants and `args` alone."""
    # jax 0.12 writes elements of tuples as `%tuple#1`; earlier ones have an operation for each
    name, *elements = name.split("#")
    if elements:
        return _element(value(name, table, args, tables), map(int, elements))
    op = table.get(name)
    if op is None:
        return None
    if op.kind == "constant":
        text = op.rest.partition(")")[0]
        return {"true": 1, "false": 0}.get(
            text, int(text) if re.fullmatch(r"-?\d+", text) else None
        )
    if op.kind == "parameter":
        number = int(op.rest.partition(")")[0])
        return args[number]() if number < len(args) else None
    given = inputs(op, table, args, tables)
    if op.kind == "tuple":
        return given
    if op.kind == "get-tuple-element":
        index = re.search(r"index=(\d+)", op.rest)
        return _element(given[0](), [int(index[1])]) if index else None
    if op.kind in _SAME:
        return given[0]()
    if op.kind in ("fusion", "call"):
        return result(op.called[0], given, tables)
    if op.kind in _OF_TWO or op.kind == "compare":
        found = [one() for one in given]
        if not all(isinstance(one, int) for one in found):
            return None
        direction = re.search(r"direction=(\w+)", op.rest)
        apply = _COMPARED[direction[1]] if direction else _OF_TWO[op.kind]
        return int(apply(*found))
    return None


def _element(found: Value, indices: Iterable[int]) -> Value:
    """An element of a tuple, of tuples in a tuple by several indices; None where unknown."""
    for index in indices:
        if not isinstance(found, tuple) or index >= len(found):
            return None
        found = found[index]()
    return found


def result(computation: str, args: tuple[Thunk, ...], tables: Tables) -> Value:
    """What a computation gives back, see `value`."""
    table = tables(computation)
    root = next((op.name for op in table.values() if op.root), "")
    return value(root, table, args, tables)


class Loop:
    """A `while` among the operations of `table`, whose parameters are `args`."""

    def __init__(
        self, op: Operation, table: Table, args: tuple[Thunk, ...], tables: Tables
    ) -> None:
        parts = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", op.rest))
        self.body, self._condition = parts["body"], parts["condition"]
        self._tables, self._rest = tables, op.rest
        (start,) = inputs(op, table, args, tables)
        found = start()
        self._start: tuple[Thunk, ...] = found if isinstance(found, tuple) else ()

    def rounds(self) -> int | None:
        """How often it turns; None where that is not known before it runs."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self._rest):
            return int(known[1])
        decides = self._read()
        if not decides:
            return None  # a condition of which nothing is understood
        first = {i: self._start[i]() for i in decides}
        second = {i: self._after(i, first) for i in decides}
        if None in first.values() or None in second.values():
            return None
        steps = {i: second[i] - first[i] for i in decides}

        def turns(n: int) -> bool | None:
            """Whether it goes on after `n` rounds; None where the condition is not understood."""
            state = {i: first[i] + n * steps[i] for i in decides}
            found = result(self._condition, (lambda: self._state(state),), self._tables)
            return bool(found) if isinstance(found, int) else None

        if {i: self._after(i, second) for i in decides} != {
            i: second[i] + steps[i] for i in decides
        }:
            return None  # it does not count
        if turns(0) is None:
            return None
        most = 1
        while turns(most) and most < _MOST:
            most *= 2
        if not turns(0) or most >= _MOST:
            return None if turns(0) else 0
        low = most // 2
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (middle, most) if turns(middle) else (low, middle)
        return most

    def unchanging(self) -> Value:
        """What is known of its state in every round."""

        def kept(i: int) -> Value:
            before = self._start[i]()
            return before if before == self._after(i, {i: before}) else None

        return tuple(functools.partial(kept, i) for i in range(len(self._start)))

    def _read(self) -> list[int]:
        """The places of its state that decide whether it goes on."""
        read: set[int] = set()

        def noted(i: int) -> Value:
            read.add(i)
            return self._start[i]()

        state = tuple(functools.partial(noted, i) for i in range(len(self._start)))
        result(self._condition, (lambda: state,), self._tables)
        return sorted(read)

    def _state(self, known: dict[int, Value]) -> tuple[Thunk, ...]:
        return tuple(
            functools.partial(known.get, i) if i in known else self._start[i]
            for i in range(len(self._start))
        )

    def _after(self, index: int, before: dict[int, Value]) -> Value:
        """An element of the state after one round."""
        after = result(self.body, (lambda: self._state(before),), self._tables)
        return after[index]() if isinstance(after, tuple) else None
