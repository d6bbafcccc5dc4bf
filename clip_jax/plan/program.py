"""Parses the text of a compiled program: cycles, collectives, kernels and FLOPs of one step."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import TypedDict

from clip_jax.plan.loops import Computations, Frame, Loop, Operation, Operations, Thunk
from clip_jax.plan.products import product_flops

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# Bytes that leave a chip for each byte of the result, at least, over all its links: an all-reduce
# scatters and gathers, a permute uses one link of four.
_SEND_FACTORS = {"all-reduce": 2, "collective-permute": 4}

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**62  # the compiler writes about this or more if it has no estimate


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication between chips.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: the size of the result on each chip.
      executions: the number of executions in a step.
      group_size: the number of chips that take part; 0 if the program does not say: all chips.
    """

    kind: str
    bytes: int
    executions: int
    group_size: int

    @property
    def bytes_sent(self) -> int:
        """A lower bound of the bytes that each chip sends in a step over all its links."""
        if self.group_size == 1:
            return 0
        is_scatter = self.kind == "reduce-scatter"
        factor = self.group_size if is_scatter else _SEND_FACTORS.get(self.kind, 1)
        return factor * self.bytes * self.executions


class CollectiveSummary(TypedDict):
    """A `Collective` as a dictionary for JSON."""

    kind: str
    bytes: int
    executions: int
    group_size: int


@dataclasses.dataclass
class Program:
    """The work of one chip in one step.

    Attributes:
      cycles: the compiler's estimates, summed over all executions; without collectives and kernels.
      collectives: the collectives, in the order of the program.
      kernels: custom kernels, which the compiler does not estimate, with their executions.
      unread_loops: loops with unknown trip counts, which are counted once.
      product_flops: FLOPs of all executions of matrix products and convolutions, without kernels.
    """

    cycles: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    unread_loops: list[str] = dataclasses.field(default_factory=list)
    product_flops: int = 0

    def collective_summaries(self) -> list[CollectiveSummary]:
        """Returns the collectives merged by kind, size and group, the largest senders first."""
        executions: dict[tuple[str, int, int], int] = {}
        for c in self.collectives:
            key = c.kind, c.bytes, c.group_size
            executions[key] = executions.get(key, 0) + c.executions
        merged = [
            Collective(kind, size, count, group_size)
            for (kind, size, group_size), count in executions.items()
        ]
        return [
            CollectiveSummary(
                kind=c.kind, bytes=c.bytes, executions=c.executions, group_size=c.group_size
            )
            for c in sorted(merged, key=lambda c: -c.bytes_sent)
        ]


def parse(text: str) -> Program:
    """Parses an `*after_codegen.txt`, or `compiled.as_text()`, which may lack cycles.

    Each operation counts as often as the loops around it iterate. A fusion counts as one operation.
    """
    lines, entry = _split_computations(text)
    reader = _ProgramReader(lambda name: _parse_operations(lines.get(name, ())))
    reader.follow(entry, 1, ())
    return reader.program


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape such as `bf16[8,128]{1,0}`, or of a tuple of shapes.

    Padding is not counted.
    """
    total = 0.0
    for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = re.search(r"\d+", dtype)
        itemsize = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 4)
        total += itemsize * math.prod(int(n) for n in dims.split(",") if n)
    return round(total)


def _split_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _parse_operations(lines: Sequence[str]) -> Operations:
    return {op.name: op for op in map(_parse_operation, lines) if op}


def _parse_operation(line: str) -> Operation | None:
    match = _OPERATION.match(line)
    if not match:
        return None
    root, name, shape, opcode, text = match.groups()
    cycles = _CYCLES.search(text)
    estimate = int(cycles[1]) if cycles and int(cycles[1]) < _NO_ESTIMATE else None
    return Operation(name, opcode, shape, text, bool(root), estimate)


class _ProgramReader:
    """Follows the computations that a program executes, and sums their work in `program`."""

    def __init__(self, computations: Computations) -> None:
        self.computations = functools.cache(computations)
        self.program = Program()

    def follow(self, computation: str, executions: int, args: tuple[Thunk, ...]) -> None:
        """Adds all work of a computation.

        Args:
          computation: its name.
          executions: how often it is called in a step.
          args: the values of its parameters, where they are known.
        """
        frame = Frame(self.computations(computation), args, self.computations)
        for op in frame.operations.values():
            self._add_collective(op, executions)
            self.program.product_flops += executions * product_flops(op, frame.operations)
            if op.opcode == "while":
                self._follow_loop(op, frame, executions)
            elif op.opcode == "conditional":
                self._follow_costliest(op.called_computations, executions)
            elif op.opcode in ("call", "async-start"):
                for name in op.called_computations:
                    self.follow(name, executions, frame.operands(op))
            elif op.opcode == "fusion":
                for name in op.called_computations:
                    self._read_fusion(name, executions)
            elif op.opcode == "custom-call":
                self._add_kernel(op, executions)
            if op.cycles is not None and op.opcode not in ("while", "conditional", "call"):
                self.program.cycles += executions * op.cycles

    def _follow_loop(self, op: Operation, frame: Frame, executions: int) -> None:
        loop = Loop(op, frame)
        trips = loop.trip_count()
        if trips is None:
            self.program.unread_loops.append(op.name)
        self.follow(
            loop.body, executions * (1 if trips is None else trips), (loop.loop_invariants,)
        )

    def _follow_costliest(self, branches: Sequence[str], executions: int) -> None:
        """Follows the branch of a conditional that takes the most cycles."""

        def cycles(branch: str) -> int:
            reader = _ProgramReader(self.computations)
            reader.follow(branch, 1, ())
            return reader.program.cycles

        for branch in sorted(branches, key=cycles)[-1:]:
            self.follow(branch, executions, ())

    def _read_fusion(self, computation: str, executions: int) -> None:
        """Adds the collectives, kernels and products in a fusion.

        The cycles of a fusion are those of the operation that calls it.
        """
        operations = self.computations(computation)
        # an asynchronous collective is repeated in all fusions from its start to its end
        is_repeated = computation.startswith("async_collective_fusion") or any(
            _custom_call_target(op) == "AsyncCollectiveDone" for op in operations.values()
        )
        is_scatter = "all-reduce-scatter" in computation
        scattered = next((op.shape for op in operations.values() if op.is_root), "")
        for op in operations.values():
            self.program.product_flops += executions * product_flops(op, operations)
            if not is_repeated:
                self._add_collective(op, executions, scattered if is_scatter else "")
            if op.opcode in ("fusion", "call", "async-start"):
                for name in op.called_computations:
                    self._read_fusion(name, executions)
            elif op.opcode == "custom-call":
                self._add_kernel(op, executions)

    def _add_collective(self, op: Operation, executions: int, scattered: str = "") -> None:
        """Adds a collective; `scattered` is the shape that a fusion keeps of an all-reduce."""
        kind, shape = op.opcode.removesuffix("-start"), op.shape
        if kind not in COLLECTIVES:
            return
        if op.opcode.endswith("-start"):  # (operand, result, …)
            shapes = re.findall(r"\w+\[[\d,]*\]", shape)
            shape = shapes[1] if kind != "all-reduce" and len(shapes) > 1 else shape
        if scattered:
            kind, shape = "reduce-scatter", scattered
        collective = Collective(kind, shape_bytes(shape), executions, _group_size(op.text))
        self.program.collectives.append(collective)

    def _add_kernel(self, op: Operation, executions: int) -> None:
        if _custom_call_target(op) == "tpu_custom_call":
            kernels = self.program.kernels
            kernels[op.name] = kernels.get(op.name, 0) + executions


def _custom_call_target(op: Operation) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', op.text)
    return target[1] if target else ""


def _group_size(text: str) -> int:
    """Returns the number of chips that take part in a collective; 0 if the text does not say."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh[2]) if a in sizes)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return explicit[1].count(",") + 1
    return 0
