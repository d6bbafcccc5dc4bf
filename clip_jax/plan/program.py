"""What a compiled program does, read from the text that the TPU's compiler leaves of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NONE = 2**62  # what the compiler writes, or nearly, where it has no estimate


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation, and how often it runs in a step.

    cycles: the compiler's estimate of one run; None where it gives none.
    """

    name: str
    kind: str
    result: str
    rest: str
    runs: int
    cycles: int | None

    @property
    def source(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips: `size` bytes a chip, `runs` times a step."""

    kind: str
    size: int
    runs: int
    group: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What a step does on one chip.

    cycles: estimated, over all runs of all operations; collectives and kernels are not in it.
    kernels: custom calls, of which the compiler estimates nothing.
    endless: loops whose number of rounds could not be read, counted once.
    """

    operations: list[Operation]
    collectives: list[Collective]
    kernels: list[str]
    endless: list[str]

    @property
    def cycles(self) -> int:
        """Of one chip in one step."""
        return sum(op.runs * (op.cycles or 0) for op in self.operations)


def read(text: str) -> Program:
    """The program of an `*after_codegen.txt`, or of `compiled.as_text()` (which may lack cycles).

    An operation is counted as often as the loops around it turn; what is fused is its fusion's.
    """
    computations, entry = _computations(text)
    walk = _Walk(computations)
    walk.follow(entry, 1)
    return Program(walk.operations, list(walk.collectives.values()), walk.kernels, walk.endless)


def size_of(shape: str) -> int:
    """The bytes of a shape such as `bf16[8,128]{1,0}` or a tuple of such, without padding."""
    total = 0.0
    for kind, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = re.search(r"\d+", kind)
        each = _BYTES.get(kind, int(bits[0]) / 8 if bits else 4)
        total += each * math.prod(int(n) for n in dims.split(",") if n)
    return round(total)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


class _Walk:
    """Through the computations that really run, from the entry on."""

    def __init__(self, computations: dict[str, list[str]]) -> None:
        self.computations = computations
        self.operations: list[Operation] = []
        self.collectives: dict[str, Collective] = {}
        self.kernels: list[str] = []
        self.endless: list[str] = []

    def follow(self, computation: str, runs: int) -> None:
        """Everything that `computation` does when it runs so often."""
        for op in self._lines(computation, runs):
            called = self._called(op)
            self._collective(op)
            if op.kind == "while":
                self._loop(op, runs)
            elif op.kind == "conditional":
                for branch in self._dearest(called, runs):
                    self.follow(branch, runs)
            elif op.kind in ("call", "async-start"):
                for name in called:
                    self.follow(name, runs)
            elif op.kind == "fusion":
                for name in called:
                    self._look_inside(name, runs)
            elif op.kind == "custom-call":
                self._custom(op, runs)
            if op.cycles is not None and op.kind not in ("while", "conditional", "call"):
                self.operations.append(op)

    def _lines(self, computation: str, runs: int) -> Iterator[Operation]:
        for line in self.computations.get(computation, ()):
            if found := _OPERATION.match(line):
                name, result, kind, rest = found.groups()
                cycles = _CYCLES.search(rest)
                estimate = int(cycles[1]) if cycles and int(cycles[1]) < _NONE else None
                yield Operation(name, kind, result, rest, runs, estimate)

    def _called(self, op: Operation) -> list[str]:
        names = [n for found in _CALLED.findall(op.rest) for n in found.strip("{}").split(",")]
        return [n.strip().lstrip("%") for n in names]

    def _loop(self, op: Operation, runs: int) -> None:
        parts = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", op.rest))
        rounds = self._rounds(op, parts["condition"])
        if rounds is None:
            self.endless.append(op.name)
        self.follow(parts["body"], runs * (1 if rounds is None else rounds))

    def _rounds(self, op: Operation, condition: str) -> int | None:
        """How often a loop turns whose counter begins at 0 and is compared with a constant."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.rest):
            return int(known[1])
        lines = list(self._reached(condition))
        bounds = [
            int(found[1])
            for line in lines
            if (found := re.search(r"= s32\[\]\S* constant\((\d+)\)", line))
        ]
        compared = [line for line in lines if " compare(" in line]
        if len(bounds) == 1 and len(compared) == 1 and "direction=LT" in compared[0]:
            return bounds[0]
        return None

    def _reached(self, computation: str) -> Iterator[str]:
        for line in self.computations.get(computation, ()):
            yield line
            for found in re.findall(r"calls=%?([\w.-]+)", line):
                yield from self._reached(found)

    def _dearest(self, branches: list[str], runs: int) -> list[str]:
        """Of the branches of a conditional the one that costs most."""

        def cost(branch: str) -> int:
            walk = _Walk(self.computations)
            walk.follow(branch, runs)
            return sum(op.runs * (op.cycles or 0) for op in walk.operations)

        return sorted(branches, key=cost)[-1:]

    def _look_inside(self, fused: str, runs: int) -> None:
        """For what a fusion holds that is no computation: exchanges between chips, kernels."""
        for op in self._lines(fused, runs):
            self._collective(op)
            if op.kind in ("fusion", "call", "async-start"):
                for name in self._called(op):
                    self._look_inside(name, runs)
            elif op.kind == "custom-call":
                self._custom(op, runs)

    def _collective(self, op: Operation) -> None:
        kind = op.kind.removesuffix("-start")
        if kind not in KINDS:
            return
        shape = op.result
        if op.kind.endswith("-start"):  # (operand, result, …)
            parts = re.findall(r"\w+\[[\d,]*\]", shape)
            shape = parts[1] if kind != "all-reduce" and len(parts) > 1 else shape
        channel = re.search(r"channel_id=(\d+)", op.rest)
        key = channel[1] if channel else op.name
        self.collectives.setdefault(key, Collective(kind, size_of(shape), op.runs, _group(op.rest)))

    def _custom(self, op: Operation, runs: int) -> None:
        target = re.search(r'custom_call_target="([^"]*)"', op.rest)
        if target and target[1] == "tpu_custom_call":
            self.kernels.extend([op.name] * runs)


def _group(rest: str) -> int:
    """How many chips take part."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", axes[2]) if a in sizes)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    return 0
