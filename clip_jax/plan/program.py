"""Parses the text of a compiled program: cycles, collectives, kernels and FLOPs of one step."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from clip_jax.plan import collectives
from clip_jax.plan.collectives import Collective
from clip_jax.plan.loops import Computations, Frame, Loop, Operation, Operations, Thunk
from clip_jax.plan.products import product_flops
from clip_jax.plan.roofline import TRITON, Roofline, custom_call_target, kernel_flops
from clip_jax.plan.shapes import shape_bytes

_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**62  # the compiler writes about this or more if it has no estimate


@dataclasses.dataclass
class Program:
    """The work of one chip in one step.

    Attributes:
      cycles: the compiler's estimates, summed over all executions; without collectives and kernels.
      seconds: a lower bound of the time of a GPU, summed over all executions; without collectives.
      collectives: the collectives, in the order of the program.
      kernels: custom kernels, which the compiler does not estimate, with their executions.
      unread_loops: loops with unknown trip counts, which are counted once.
      product_flops: FLOPs of all executions of matrix products and convolutions, without kernels.
    """

    cycles: int = 0
    seconds: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    unread_loops: list[str] = dataclasses.field(default_factory=list)
    product_flops: int = 0


def parse(text: str, machine: Roofline | None = None) -> Program:
    """Parses an `*after_codegen.txt`, or `compiled.as_text()`, which may lack cycles.

    Each operation counts as often as the loops around it iterate. A fusion counts as one operation.

    Args:
      text: the program.
      machine: the GPU whose time is estimated; None: the program is not for GPUs.
    """
    lines, entry = _split_computations(text)
    reader = _ProgramReader(lambda name: _parse_operations(lines.get(name, ())), machine)
    reader.follow(entry, 1, ())
    return reader.program


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
    if opcode == "fusion-start":  # asynchronous, of jax 0.12 on GPUs
        opcode = "fusion"
    cycles = _CYCLES.search(text)
    estimate = int(cycles[1]) if cycles and int(cycles[1]) < _NO_ESTIMATE else None
    return Operation(name, opcode, shape, text, bool(root), estimate)


class _ProgramReader:
    """Follows the computations that a program executes, and sums their work in `program`."""

    def __init__(self, computations: Computations, machine: Roofline | None) -> None:
        self.computations = functools.cache(computations)
        self.machine = machine
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
            self._add_work(op, frame.operations, executions)
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

    def _add_work(self, op: Operation, operations: Operations, executions: int) -> None:
        """Adds the FLOPs of an operation outside fusions, and the time that a GPU takes for it."""
        if self.machine is None:
            self.program.product_flops += executions * product_flops(op, operations)
            return
        work = self.machine.work(op, operations, self.computations)
        self.program.product_flops += executions * round(sum(work.flops.values()))
        self.program.seconds += executions * self.machine.seconds(work)

    def _follow_loop(self, op: Operation, frame: Frame, executions: int) -> None:
        loop = Loop(op, frame)
        trips = loop.trip_count()
        if trips is None:
            self.program.unread_loops.append(op.name)
        self.follow(
            loop.body, executions * (1 if trips is None else trips), (loop.loop_invariants,)
        )

    def _follow_costliest(self, branches: Sequence[str], executions: int) -> None:
        """Follows the branch of a conditional that takes longest."""

        def cost(branch: str) -> tuple[int, float]:
            reader = _ProgramReader(self.computations, self.machine)
            reader.follow(branch, 1, ())
            return reader.program.cycles, reader.program.seconds

        for branch in sorted(branches, key=cost)[-1:]:
            self.follow(branch, executions, ())

    def _read_fusion(self, computation: str, executions: int) -> None:
        """Adds the collectives, kernels and products in a fusion.

        The cycles of a fusion are those of the operation that calls it.
        """
        operations = self.computations(computation)
        # an asynchronous collective is repeated in all fusions from its start to its end
        is_repeated = computation.startswith("async_collective_fusion") or any(
            custom_call_target(op) == "AsyncCollectiveDone" for op in operations.values()
        )
        is_scatter = "all-reduce-scatter" in computation
        scattered = next((op.shape for op in operations.values() if op.is_root), "")
        for op in operations.values():
            if self.machine is None:
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
        kind = op.opcode.removesuffix("-start")
        if kind not in collectives.KINDS:
            return
        shape = collectives.result_shape(op.opcode, op.shape)
        if scattered:
            kind, shape = "reduce-scatter", scattered
        hosts = None
        if self.machine:
            size, hosts = collectives.group_and_hosts(op.text, self.machine.hosts)
        else:
            groups = collectives.parse_groups(op.text)
            size = 0 if groups is None else groups.shape[1]
        self.program.collectives.append(
            Collective(kind, shape_bytes(shape), executions, size, hosts)
        )

    def _add_kernel(self, op: Operation, executions: int) -> None:
        is_kernel = custom_call_target(op) in ("tpu_custom_call", TRITON)
        if is_kernel and not kernel_flops(op):
            kernels = self.program.kernels
            kernels[op.name] = kernels.get(op.name, 0) + executions
