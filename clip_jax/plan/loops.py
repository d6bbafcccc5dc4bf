"""Counts the iterations of loops in a compiled program, by evaluating a few constant scalars."""

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
_IDENTITIES = (
    "bitcast", "convert", "copy", "copy-done", "copy-start", "optimization-barrier", "reshape",
)  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], int]] = {
    "add": operator.add,
    "and": operator.and_,
    "maximum": max,
    "minimum": min,
    "multiply": operator.mul,
    "or": operator.or_,
    "subtract": operator.sub,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "EQ": operator.eq,
    "GE": operator.ge,
    "GT": operator.gt,
    "LE": operator.le,
    "LT": operator.lt,
    "NE": operator.ne,
}
_MAX_TRIPS = 2**31  # a loop with more is taken for an endless one


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation.

    Attributes:
      name: the name without its `%`.
      opcode: such as `fusion`.
      shape: the shape of the result, such as `bf16[8,128]{1,0}`.
      text: operands and attributes, everything after the opcode's parenthesis.
      is_root: whether its computation returns it.
      cycles: the compiler's estimate for one execution; None if there is none.
    """

    name: str
    opcode: str
    shape: str
    text: str
    is_root: bool = False
    cycles: int | None = None

    @property
    def operands(self) -> list[str]:
        """The names of the operands; `name#1` is element 1 of the tuple `name`."""
        return re.findall(r"%([\w.-]+(?:#\d+)*)", self.text.partition("), ")[0])

    @property
    def called_computations(self) -> list[str]:
        """The names of the computations that the operation calls."""
        names = [n for group in _CALLED.findall(self.text) for n in group.strip("{}").split(",")]
        return [n.strip().lstrip("%") for n in names]


Operations = dict[str, Operation]  # the operations of a computation, by name
Computations = Callable[[str], Operations]  # by the name of the computation
Value = Any  # an int, a tuple of thunks, or None: unknown
Thunk = Callable[[], Value]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A call of a computation, which evaluates the scalars in it that are constant.

    Attributes:
      operations: the operations of the computation.
      args: the values of its parameters.
      computations: all computations of the program.
    """

    operations: Operations
    args: tuple[Thunk, ...]
    computations: Computations

    def operands(self, op: Operation) -> tuple[Thunk, ...]:
        """Returns the values of the operands of an operation."""
        return tuple(functools.partial(self.evaluate, name) for name in op.operands)

    def evaluate(self, name: str) -> Value:
        """Returns an operation's value if it follows from constants and `args`, otherwise None."""
        # jax 0.12 writes an element of a tuple as `%tuple#1`; earlier versions have an operation
        name, *indices = name.split("#")
        if indices:
            return _tuple_element(self.evaluate(name), map(int, indices))
        op = self.operations.get(name)
        if op is None:
            return None
        if op.opcode == "constant":
            return _constant(op.text.partition(")")[0])
        if op.opcode == "parameter":
            number = int(op.text.partition(")")[0])
            return self.args[number]() if number < len(self.args) else None
        operands = self.operands(op)
        if op.opcode == "tuple":
            return operands
        if op.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", op.text)
            return _tuple_element(operands[0](), [int(index[1])]) if index else None
        if op.opcode in _IDENTITIES:
            return operands[0]()
        if op.opcode in ("fusion", "call"):
            return evaluate_call(op.called_computations[0], operands, self.computations)
        if op.opcode in _BINARY or op.opcode == "compare":
            return _arithmetic(op, [operand() for operand in operands])
        return None


def evaluate_call(computation: str, args: tuple[Thunk, ...], computations: Computations) -> Value:
    """Returns the result of a call of a computation, see `Frame.evaluate`."""
    frame = Frame(computations(computation), args, computations)
    root = next((op.name for op in frame.operations.values() if op.is_root), "")
    return frame.evaluate(root)


def _constant(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"-?\d+", text) else None
    return {"true": 1, "false": 0}.get(text, number)


def _arithmetic(op: Operation, values: list[Value]) -> int | None:
    if not all(isinstance(value, int) for value in values):
        return None
    direction = re.search(r"direction=(\w+)", op.text)
    function = _COMPARISONS[direction[1]] if direction else _BINARY[op.opcode]
    return int(function(*values))


def _tuple_element(value: Value, indices: Iterable[int]) -> Value:
    """Returns an element of a tuple; several indices go into nested tuples. None if unknown."""
    for index in indices:
        if not isinstance(value, tuple) or index >= len(value):
            return None
        value = value[index]()
    return value


class Loop:
    """A `while` operation.

    Args:
      op: the operation.
      frame: the call of the computation that contains it.
    """

    def __init__(self, op: Operation, frame: Frame) -> None:
        called = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", op.text))
        self.body, self._condition = called["body"], called["condition"]
        self._computations, self._text = frame.computations, op.text
        (start,) = frame.operands(op)
        state = start()
        self._start: tuple[Thunk, ...] = state if isinstance(state, tuple) else ()

    def trip_count(self) -> int | None:
        """Returns the number of iterations, or None if it is unknown before the program runs.

        Only loops whose condition depends on scalars with constant steps are counted.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self._text):
            return int(known[1])
        indices = self._condition_inputs()
        if not indices:
            return None  # nothing of the condition is understood
        first = {i: self._start[i]() for i in indices}
        second = {i: self._next_value(i, first) for i in indices}
        if None in first.values() or None in second.values():
            return None
        steps = {i: second[i] - first[i] for i in indices}
        third = {i: self._next_value(i, second) for i in indices}
        if third != {i: second[i] + steps[i] for i in indices}:
            return None  # the steps are not constant

        def continues(n: int) -> bool | None:
            """Returns whether the loop continues after n iterations; None if that is unknown."""
            state = {i: first[i] + n * steps[i] for i in indices}
            value = evaluate_call(
                self._condition, (lambda: self._state(state),), self._computations
            )
            return bool(value) if isinstance(value, int) else None

        return _first_false(continues)

    def loop_invariants(self) -> Value:
        """Returns the state as a tuple in which only the values that never change are known."""

        def invariant(i: int) -> Value:
            before = self._start[i]()
            return before if before == self._next_value(i, {i: before}) else None

        return tuple(functools.partial(invariant, i) for i in range(len(self._start)))

    def _condition_inputs(self) -> list[int]:
        """Returns the indices of the elements of the state that the condition reads."""
        indices: set[int] = set()

        def recorded(i: int) -> Value:
            indices.add(i)
            return self._start[i]()

        state = tuple(functools.partial(recorded, i) for i in range(len(self._start)))
        evaluate_call(self._condition, (lambda: state,), self._computations)
        return sorted(indices)

    def _state(self, values: dict[int, Value]) -> tuple[Thunk, ...]:
        """Returns the initial state with other values at some indices."""
        return tuple(
            functools.partial(values.get, i) if i in values else self._start[i]
            for i in range(len(self._start))
        )

    def _next_value(self, index: int, values: dict[int, Value]) -> Value:
        """Returns an element of the state after one iteration."""
        state = evaluate_call(self.body, (lambda: self._state(values),), self._computations)
        return state[index]() if isinstance(state, tuple) else None


def _first_false(predicate: Callable[[int], bool | None]) -> int | None:
    """Returns the smallest n ≥ 0 for which a monotonic predicate is false, by bisection.

    None if the predicate is unknown at 0, or true up to `_MAX_TRIPS`.
    """
    if predicate(0) is None:
        return None
    high = 1
    while predicate(high) and high < _MAX_TRIPS:
        high *= 2
    if not predicate(0) or high >= _MAX_TRIPS:
        return None if predicate(0) else 0
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if predicate(middle) else (low, middle)
    return high
