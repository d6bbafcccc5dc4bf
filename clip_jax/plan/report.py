"""`--mode=plan`: what is printed of a plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from clip_jax.plan import search
from clip_jax.plan.cost import PARTS, Estimate, recipe_of
from clip_jax.plan.search import Refused

NOTE = "compiler-estimated, not run"
_TRUST = """\
HBM, and whether it fits: what the compiler allots. Time: its cycles of each operation, times the
rounds of the loops around it, over the clock: a model, in which a large matrix product comes to
88-90 % of the peak. Differences below 10 % mean nothing; input, dispatch and chips that wait for
others are not in it. Interconnect: a lower bound, every link busy all the time. images/s, MFU and
days take the longer of the two, as if it hid the other: no run is faster."""
_TRUST_CPU = """\
Memory: what XLA allots, beside this machine's over its devices. Its compiler for CPUs estimates no
time."""
_GIB = 2**30


def plan(
    c: ConfigDict,
    topology: str,
    *,
    name: str = "the config",
    axes: Sequence[str] | None = None,
    as_json: bool = False,
    dump: str | None = None,
) -> None:
    """Prints what training takes on a topology; where that does not fit, what would.

    Args:
      c: the config.
      topology: see `clip_jax.plan.topology.find`.
      name: of the config.
      axes: what to sweep over, see `search.axes_of`; empty: the usual choices; None: no sweep.
      as_json: the last line is the same as JSON.
      dump: a folder that keeps what the compiler writes of the config's program.
    """
    result: dict[str, Any] = {"config": name, "note": NOTE}
    if axes is None:
        recipe_of(c, topology)  # what is wrong is said first
        found = search.timed(c, topology, _say, dump=dump)
        print(_text(name, found))
        others = [] if found.fits else search.proposals(c, topology, found, _say)
        if not found.fits:
            print(_proposed(others))
        result |= found.to_dict() | {"proposals": [other.to_dict() for other in others]}
    else:
        chosen = search.axes_of(axes) if axes else search.default_axes(c, topology)
        rows = search.sweep(c, topology, chosen, _say)
        print(f"{name} on {topology}\n{_table(rows)}\n\n{NOTE}; ms: compute + interconnect")
        result |= {"topology": topology, "sweep": [_row_dict(row) for row in rows]}
    if as_json:
        print(json.dumps(result))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if abs(size) >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _text(name: str, e: Estimate) -> str:
    where = f"{e.devices} CPU devices" if e.chips is None else f"{e.chips} chip(s)"
    rows = e.batch_size // e.devices
    lines = [
        f"{name} on {e.topology}: {where}, batch {e.batch_size:,} ({rows:,} a device)",
        _fits(e),
    ]
    if e.hbm["activations"] > 0:
        lines += [f"    {part:<14}{_size(e.hbm[part]):>12}" for part in PARTS]
    for tower, chunk in zip(("image", "text"), e.chunks, strict=True):
        if chunk:
            lines.append(f"  layers of the {tower} tower take {chunk} rows at a time")
    lines.append(f"  model FLOPs     {e.model_flops:.4g} a step, all chips")
    if e.estimated_seconds is not None:
        lines.append(f"  compute         {_number(1e3 * e.estimated_seconds)} ms a step, {NOTE}")
    if e.time_unknown:
        lines.append(f"  TIME UNKNOWN    {e.time_unknown}: please report it")
    if e.interconnect_seconds is not None:
        lines.append(
            f"  interconnect    {_number(1e3 * e.interconnect_seconds)} ms a step, at least"
        )
    lines += _collectives(e)
    if e.images_per_second_per_chip is not None and e.days is not None:
        mfu = "" if e.mfu is None else f", {100 * e.mfu:.1f} % MFU"
        hours = "" if e.chip_hours is None else f", {_number(e.chip_hours)} chip-hours"
        speed = _number(e.images_per_second_per_chip)
        lines += [
            f"  speed           {speed} images/s/chip{mfu}, at most",
            f"  {e.steps:,} steps  {_number(e.days)} days{hours}, at least",
        ]
    if e.kernels:
        runs = sum(e.kernels.values())
        lines.append(f"  NOT counted: {len(e.kernels)} custom kernels, run {runs:,} times a step")
    if e.unread_loops:
        loops = ", ".join(e.unread_loops[:3])
        lines.append(
            f"  {len(e.unread_loops)} loops counted once, their length is unknown: {loops}"
        )
    trust = _TRUST_CPU if e.chips is None else _TRUST
    return "\n".join([*lines, "", f"{NOTE[0].upper()}{NOTE[1:]}.", trust])


def _fits(e: Estimate) -> str:
    capacity = _size(e.hbm_capacity_bytes)
    if e.fits:
        return f"  fits            {_size(e.hbm_bytes)} of {capacity} a device"
    over = _size(e.hbm_bytes - e.hbm_capacity_bytes)
    return f"  DOES NOT FIT    {_size(e.hbm_bytes)} wanted of {capacity} a device: {over} too much"


def _collectives(e: Estimate) -> list[str]:
    found = e.collectives or []
    lines = [
        f"    {c['kind']:<20}{c['bytes'] / 1e6:>10,.4g} MB × {c['executions']:<6,} "
        f"over {c['group_size'] or e.devices}"
        for c in found[:8]
    ]
    return [*lines, f"    and {len(found) - 8} smaller"] if len(found) > 8 else lines


def _proposed(others: Sequence[Estimate]) -> str:
    if not others:
        return "\nnothing that was tried fits: take more chips or a smaller model"
    lines = ["\nwhat would fit (compiled, too):"]
    for e in others:
        speed = "" if e.step_seconds is None else f", {_number(1e3 * e.step_seconds)} ms a step"
        speed = ", time unknown" if e.time_unknown else speed
        lines.append(f"  {search.flags(e.overrides)}\n      {_size(e.hbm_bytes)} a device{speed}")
    if any("batch_size" in e.overrides for e in others):
        lines.append("a smaller batch trains something else; the others change no number")
    return "\n".join(lines)


def _table(rows: Sequence[Estimate | Refused]) -> str:
    keys = list(rows[0].overrides) if rows else []
    heads = [*keys, "GiB", "ms", "images/s/chip", "MFU", ""]
    return _aligned([heads, *([*map(str, r.overrides.values()), *_cells(r)] for r in rows)])


def _cells(row: Estimate | Refused) -> list[str]:
    if isinstance(row, Refused):
        return ["", "", "", "", row.error]
    size = f"{row.hbm_bytes / _GIB:.2f}"
    if row.estimated_seconds is None:
        why = "time unknown" if row.time_unknown else ""
        return [size, "", "", "", why if row.fits else "does not fit"]
    milliseconds = [1e3 * row.estimated_seconds, 1e3 * (row.interconnect_seconds or 0)]
    mfu = "" if row.mfu is None else f"{100 * row.mfu:.1f} %"
    return [
        size,
        " + ".join(map(_number, milliseconds)),
        _number(row.images_per_second_per_chip or 0),
        mfu,
        "",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False))
        + f"  {row[-1]}".rstrip()
        for row in rows
    )


def _row_dict(row: Estimate | Refused) -> dict[str, Any]:
    if isinstance(row, Estimate):
        return row.to_dict()
    return {"overrides": dict(row.overrides), "fits": False, "error": row.error}
