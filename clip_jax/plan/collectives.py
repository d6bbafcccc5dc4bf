"""Collectives of a compiled program: kinds, bytes, and the devices that take part."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

from clip_jax.plan.shapes import integers, tuple_elements

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# Bytes that leave a chip for each byte of the result, at least, over all its links: an all-reduce
# scatters and gathers, a permute uses one link of four of a TPU.
_SEND_FACTORS = {"all-reduce": 2, "collective-permute": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication between devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: the size of the result on each device.
      executions: the number of executions in a step.
      group_size: the number of devices that take part; 0 if the program does not say: all devices.
      hosts: the number of hosts that take part; None if that does not matter (TPUs).
    """

    kind: str
    bytes: int
    executions: int
    group_size: int
    hosts: int | None = None

    @property
    def bytes_sent(self) -> int:
        """A lower bound of the bytes that each device sends in a step over all its links."""
        if self.group_size == 1:
            return 0
        is_scatter = self.kind == "reduce-scatter"
        factor = self.group_size if is_scatter else _SEND_FACTORS.get(self.kind, 1)
        if self.hosts is not None and self.kind == "collective-permute":
            factor = 1  # a GPU sends over all its links
        return factor * self.bytes * self.executions

    @property
    def bytes_between_hosts(self) -> float:
        """A lower bound of the bytes that each device sends to other hosts in a step.

        The devices of a host share what leaves it: a host sends its part of the result, or of the
        sum, to the others once.
        """
        hosts = self.hosts or 1
        if hosts == 1:
            return 0.0
        if self.kind == "collective-permute":
            return float(self.bytes_sent)
        per_host = self.group_size / hosts
        return self.bytes_sent * (hosts - 1) / hosts / per_host


class CollectiveSummary(TypedDict):
    """A `Collective` as a dictionary for JSON."""

    kind: str
    bytes: int
    executions: int
    group_size: int
    hosts: int | None


def summaries(collectives: Iterable[Collective]) -> list[CollectiveSummary]:
    """Returns collectives merged by kind, size and group, the largest senders first."""
    executions: dict[tuple[str, int, int, int | None], int] = {}
    for c in collectives:
        key = c.kind, c.bytes, c.group_size, c.hosts
        executions[key] = executions.get(key, 0) + c.executions
    merged = [
        Collective(kind, size, count, group_size, hosts)
        for (kind, size, group_size, hosts), count in executions.items()
    ]
    return [
        CollectiveSummary(
            kind=c.kind,
            bytes=c.bytes,
            executions=c.executions,
            group_size=c.group_size,
            hosts=c.hosts,
        )
        for c in sorted(merged, key=lambda c: -c.bytes_sent)
    ]


def parse_groups(text: str) -> np.ndarray | None:
    """Returns the devices of each group of a collective, [groups, devices of a group].

    Args:
      text: operands and attributes of the operation.

    Returns:
      The numbers of the devices, or None if the text does not tell them: all devices.
    """
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text
    ):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[1])
    if explicit := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
        groups = [integers(group) for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
        if groups and len(set(map(len, groups))) == 1:
            return np.array(groups)
    return None


def _iota(text: str) -> np.ndarray:
    """Returns the array that `[2,8]<=[8,2]T(1,0)` stands for."""
    shape, source, permutation = re.match(  # type: ignore[union-attr]  # the caller matched it
        r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text
    ).groups()
    sides = integers(source or shape)
    devices = np.arange(math.prod(sides)).reshape(sides)
    if permutation:
        devices = devices.transpose(integers(permutation))
    return devices.reshape(integers(shape)) if source else devices


def _mesh_groups(axes: str, device_ids: str | None, grouped: str) -> np.ndarray | None:
    """Returns the groups of devices along some axes of a mesh, such as `'a'=2,'b'=4`."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    along = re.findall(r"'(\w+)'", grouped)
    if not set(along) <= set(sizes) or ":" in grouped:
        return None
    devices = np.arange(math.prod(sizes.values()))
    if device_ids:
        devices = _iota(device_ids)
    if devices.size != math.prod(sizes.values()):
        return None
    names = list(sizes)
    devices = devices.reshape([sizes[name] for name in names])
    order = [names.index(n) for n in names if n not in along] + [names.index(n) for n in along]
    return devices.transpose(order).reshape(-1, math.prod(sizes[name] for name in along))


def group_and_hosts(text: str, hosts: Sequence[int]) -> tuple[int, int]:
    """Returns the size of a collective's groups, and the largest number of hosts in one.

    A permutation counts as one of two hosts if every pair of its devices is on two.

    Args:
      text: operands and attributes of the operation.
      hosts: the number of the host of each device.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        ends = [integers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
        return 2, 2 if ends and all(hosts[a] != hosts[b] for a, b in ends) else 1
    groups = parse_groups(text)
    if groups is None:
        return len(hosts), len(set(hosts))
    return groups.shape[1], _most_hosts(groups, hosts)


def _most_hosts(groups: np.ndarray, hosts: Sequence[int]) -> int:
    return max(len({hosts[device] for device in group}) for group in groups.tolist())


def result_shape(opcode: str, shape: str) -> str:
    """Returns the shape of a collective's result, which `-start` returns beside its operands."""
    if not opcode.endswith("-start") or opcode.startswith("all-reduce"):
        return shape
    parts = tuple_elements(shape)
    return parts[1] if len(parts) > 1 else shape
