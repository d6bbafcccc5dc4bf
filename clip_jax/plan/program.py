"""What a compiled program does, read from the text that the compiler leaves of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from clip_jax.plan import loops, products
from clip_jax.plan.loops import Operation

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# What leaves a chip at least for each byte of a result, its links being counted together: an
# all-reduce scatters and gathers, a permute has one link of four.
_SENT = {"all-reduce": 2, "collective-permute": 4}

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NONE = 2**62  # what the compiler writes, or nearly, where it has no estimate


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips: a result of `size` bytes on each, `runs` times a step.

    group: how many chips take part; 0 where the program does not say, which means all.
    """

    kind: str
    size: int
    runs: int
    group: int

    @property
    def sent(self) -> int:
        """Bytes of a step that keep a chip's links busy, at least."""
        if self.group == 1:
            return 0
        factor = self.group if self.kind == "reduce-scatter" else _SENT.get(self.kind, 1)
        return factor * self.size * self.runs


@dataclasses.dataclass(frozen=True)
class Program:
    """What a step does on one chip.

    cycles: estimated, over all runs of all operations; collectives and kernels are not in it.
    kernels: custom calls, of which the compiler estimates nothing, and how often each runs.
    endless: loops whose number of rounds could not be read, counted once.
    product_flops: of all runs of its matrix products and convolutions; kernels are not in it.
    """

    operations: list[Operation]
    collectives: list[Collective]
    kernels: dict[str, int]
    endless: list[str]
    product_flops: int = 0

    @property
    def cycles(self) -> int:
        """Of one chip in one step."""
        return sum(op.runs * (op.cycles or 0) for op in self.operations)

    def exchanges(self) -> list[dict[str, Any]]:
        """Collectives, those of one kind, size and group together; what sends most comes first."""
        alike: dict[tuple[str, int, int], int] = {}
        for c in self.collectives:
            key = c.kind, c.size, c.group
            alike[key] = alike.get(key, 0) + c.runs
        found = [Collective(kind, size, runs, group) for (kind, size, group), runs in alike.items()]
        return [
            {"kind": c.kind, "bytes": c.size, "executions": c.runs, "group_size": c.group}
            for c in sorted(found, key=lambda c: -c.sent)
        ]


def read(text: str) -> Program:
    """The program of an `*after_codegen.txt`, or of `compiled.as_text()` (which may lack cycles).

    An operation is counted as often as the loops around it turn; what is fused is its fusion's.
    """
    computations, entry = _computations(text)
    walk = _Walk(computations)
    walk.follow(entry, 1, ())
    return Program(
        walk.operations, walk.collectives, walk.kernels, walk.endless, walk.product_flops
    )


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


def _operation(line: str) -> Operation | None:
    found = _OPERATION.match(line)
    if not found:
        return None
    root, name, result, kind, rest = found.groups()
    cycles = _CYCLES.search(rest)
    estimate = int(cycles[1]) if cycles and int(cycles[1]) < _NONE else None
    return Operation(name, kind, result, rest, bool(root), estimate)


class _Walk:
    """Through the computations that really run, from the entry on."""

    def __init__(self, computations: dict[str, list[str]]) -> None:
        self.computations = computations
        self.table = functools.cache(self._table)
        self.operations: list[Operation] = []
        self.collectives: list[Collective] = []
        self.kernels: dict[str, int] = {}
        self.endless: list[str] = []
        self.product_flops = 0

    def _table(self, computation: str) -> loops.Table:
        lines = map(_operation, self.computations.get(computation, ()))
        return {op.name: op for op in lines if op}

    def follow(self, computation: str, runs: int, args: tuple[loops.Thunk, ...]) -> None:
        """Everything that `computation` does when it is called so often.

        `args` are what is known of its parameters.
        """
        table = self.table(computation)
        for op in table.values():
            self._collective(op, runs)
            self.product_flops += runs * products.flops(op, table)
            if op.kind == "while":
                self._loop(op, table, runs, args)
            elif op.kind == "conditional":
                for branch in self._dearest(op.called):
                    self.follow(branch, runs, ())
            elif op.kind in ("call", "async-start"):
                inputs = loops.inputs(op, table, args, self.table)
                for name in op.called:
                    self.follow(name, runs, inputs)
            elif op.kind == "fusion":
                for name in op.called:
                    self._look_inside(name, runs)
            elif op.kind == "custom-call":
                self._custom(op, runs)
            if op.cycles is not None and op.kind not in ("while", "conditional", "call"):
                self.operations.append(dataclasses.replace(op, runs=runs))

    def _loop(
        self, op: Operation, table: loops.Table, runs: int, args: tuple[loops.Thunk, ...]
    ) -> None:
        loop = loops.Loop(op, table, args, self.table)
        rounds = loop.rounds()
        if rounds is None:
            self.endless.append(op.name)
        self.follow(loop.body, runs * (1 if rounds is None else rounds), (loop.unchanging,))

    def _dearest(self, branches: list[str]) -> list[str]:
        """Of the branches of a conditional the one that costs most."""

        def cost(branch: str) -> int:
            walk = _Walk(self.computations)
            walk.follow(branch, 1, ())
            return sum(op.runs * (op.cycles or 0) for op in walk.operations)

        return sorted(branches, key=cost)[-1:]

    def _look_inside(self, fused: str, runs: int) -> None:
        """For what a fusion holds that is no computation: exchanges between chips, kernels."""
        table = self.table(fused)
        # an asynchronous exchange stands in every fusion from its start to its end
        under_way = fused.startswith("async_collective_fusion") or any(
            _target(op) == "AsyncCollectiveDone" for op in table.values()
        )
        for op in table.values():
            self.product_flops += runs * products.flops(op, table)
            if not under_way:
                scattered = [o.result for o in table.values() if o.root]
                self._collective(op, runs, scattered if "all-reduce-scatter" in fused else ())
            if op.kind in ("fusion", "call", "async-start"):
                for name in op.called:
                    self._look_inside(name, runs)
            elif op.kind == "custom-call":
                self._custom(op, runs)

    def _collective(self, op: Operation, runs: int, scattered: Sequence[str] = ()) -> None:
        """Notes an exchange; `scattered` is what a fusion keeps of an all-reduce's result."""
        kind, shape = op.kind.removesuffix("-start"), op.result
        if kind not in KINDS:
            return
        if op.kind.endswith("-start"):  # (operand, result, …)
            parts = re.findall(r"\w+\[[\d,]*\]", shape)
            shape = parts[1] if kind != "all-reduce" and len(parts) > 1 else shape
        if scattered:
            kind, shape = "reduce-scatter", scattered[0]
        self.collectives.append(Collective(kind, size_of(shape), runs, _group(op.rest)))

    def _custom(self, op: Operation, runs: int) -> None:
        if _target(op) == "tpu_custom_call":
            self.kernels[op.name] = self.kernels.get(op.name, 0) + runs


def _target(op: Operation) -> str:
    """What a custom call calls."""
    found = re.search(r'custom_call_target="([^"]*)"', op.rest)
    return found[1] if found else ""


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
