"""`--mode=plan`: prints a plan or a sweep, as text and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from clip_jax.errors import counted
from clip_jax.io.files import JsonObject
from clip_jax.plan import search
from clip_jax.plan.cost import make_recipe
from clip_jax.plan.gpus import MEMORY_FRACTION_VARIABLE
from clip_jax.plan.result import PARTS, Estimate
from clip_jax.plan.search import Rejected
from clip_jax.plan.topology import SPLIT_CHIPS, is_split

NOTE = "compiler-estimated, not run"
_EXPLANATION = """\
HBM, and whether it fits: what the compiler allocates. Time: its estimated cycles for each
operation, times the trip counts of the loops around it, divided by the clock rate. This is a model;
a large matrix product reaches 88-90 % of the peak. Differences below 10 % mean nothing. Input,
dispatch and waiting for other chips are not included. Interconnect: a lower bound, as if all links
were always busy. images/s, MFU and days use the longer of both times, as if it hid the other: no
run is faster."""
_GPU_EXPLANATION = """\
Memory, and whether it fits: what the compiler allocates, compared to the {percent:.0f} % of a GPU's
memory that JAX takes ({variable} sets the share); the rest is left to CUDA and
its libraries. Tuning on a GPU can choose products with other scratch memory than here. Time: a
roofline, which is a lower bound: of each kernel the longer of its FLOPs at the peak and its bytes
at the memory's bandwidth; arrays that fit into the L2 cache count as free. No GPU reaches it.
Interconnect: a lower bound, as if all links were always busy. images/s, MFU and days use the longer
of both times, as if it hid the other: no run is faster."""
_CPU_EXPLANATION = """\
Memory: what XLA allocates, compared to this machine's memory divided by its devices. The CPU
compiler estimates no time."""
_GIB = 2**30
_MAX_COLLECTIVES = 8  # lines of the report


def print_plan(
    config: ConfigDict,
    topology: str,
    config_name: str,
    *,
    as_json: bool = False,
    dump: str | None = None,
) -> None:
    """Prints what training needs on a topology and, if that does not fit, alternatives that do.

    Args:
      config: the config.
      topology: its name, see `clip_jax.plan.topology.find_topology`.
      config_name: the name of the config in the output.
      as_json: whether to print the plan as JSON on the last line, too.
      dump: a folder that keeps the output of the compiler; None: nothing is kept.
    """
    make_recipe(config, topology)  # finds mistakes before anything is printed
    estimate = search.estimate_and_log(config, topology, _log, dump=dump)
    print(_plan_text(config_name, estimate))
    proposals = [] if estimate.fits else search.propose(config, topology, estimate, _log)
    if not estimate.fits:
        print(_proposals_text(proposals))
    if as_json:
        values = {**estimate.to_dict(), "proposals": [e.to_dict() for e in proposals]}
        print(json.dumps({"config": config_name, "note": NOTE, **values}))


def print_sweep(
    config: ConfigDict,
    topology: str,
    config_name: str,
    arguments: Sequence[str],
    *,
    as_json: bool = False,
) -> None:
    """Prints a table of plans with different values of some keys.

    Args:
      config: the config.
      topology: its name, see `clip_jax.plan.topology.find_topology`.
      config_name: the name of the config in the output.
      arguments: keys with their values, see `search.parse_axes`; empty: `search.default_axes`.
      as_json: whether to print the plans as JSON on the last line, too.
    """
    axes = search.parse_axes(arguments) if arguments else search.default_axes(config, topology)
    rows = search.sweep(config, topology, axes, _log)
    print(
        f"{config_name} on {topology}\n{_sweep_table(rows)}\n\n{NOTE}; ms: compute + interconnect"
    )
    if as_json:
        values = {"topology": topology, "sweep": [_row_to_dict(row) for row in rows]}
        print(json.dumps({"config": config_name, "note": NOTE, **values}))


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _format_bytes(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if abs(size) >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _plan_text(config_name: str, e: Estimate) -> str:
    devices = counted(e.devices, "CPU device") if e.chips is None else counted(e.chips, _unit(e))
    rows = e.batch_size // e.devices
    lines = [
        f"{config_name} on {e.topology}: {devices}, batch {e.batch_size:,} ({rows:,} per device)",
        *_split_lines(e),
        *_memory_lines(e),
        f"  model FLOPs     {e.model_flops:.4g} per step, all devices",
        *_time_lines(e),
    ]
    if e.kernels:
        kernels, runs = counted(len(e.kernels), "custom kernel"), sum(e.kernels.values())
        lines.append(f"  NOT counted: {kernels}, run {runs:,} times per step")
    if e.unread_loops:
        loops, names = counted(len(e.unread_loops), "loop"), ", ".join(e.unread_loops[:3])
        lines.append(f"  {loops} with an unknown trip count, counted once: {names}")
    return "\n".join([*lines, "", f"{NOTE[0].upper()}{NOTE[1:]}.", _explanation(e)])


def _unit(e: Estimate) -> str:
    return "chip" if e.memory_fraction is None else "GPU"


def _explanation(e: Estimate) -> str:
    if e.memory_fraction is not None:
        return _GPU_EXPLANATION.format(
            percent=100 * e.memory_fraction, variable=MEMORY_FRACTION_VARIABLE
        )
    return _CPU_EXPLANATION if e.chips is None else _EXPLANATION


def _split_lines(e: Estimate) -> list[str]:
    if not is_split(e.topology):
        return []
    return [f"  each core of a chip is a device: train with {SPLIT_CHIPS} in the environment"]


def _memory_lines(e: Estimate) -> list[str]:
    used, capacity = _format_bytes(e.hbm_bytes), _format_bytes(e.hbm_capacity_bytes)
    if e.fits:
        lines = [f"  fits            {used} of {capacity} per device"]
    else:
        excess = _format_bytes(e.hbm_bytes - e.hbm_capacity_bytes)
        lines = [f"  DOES NOT FIT    needs {used} of {capacity} per device: {excess} too much"]
    if e.hbm["activations"] > 0:
        lines += [f"    {part:<14}{_format_bytes(e.hbm[part]):>12}" for part in PARTS]
    for tower, chunk in zip(("image", "text"), e.chunks, strict=True):
        if chunk:
            lines.append(f"  layers of the {tower} tower process {chunk} rows at a time")
    return lines


def _time_lines(e: Estimate) -> list[str]:
    lines = []
    if e.estimated_seconds is not None:
        milliseconds = _format_number(1e3 * e.estimated_seconds)
        bound = "" if e.memory_fraction is None else "at least (roofline), "
        lines.append(f"  compute         {milliseconds} ms per step, {bound}{NOTE}")
    if e.time_unknown:
        lines.append(f"  TIME UNKNOWN    {e.time_unknown}: please report it")
    if e.interconnect_seconds is not None:
        milliseconds = _format_number(1e3 * e.interconnect_seconds)
        lines.append(f"  interconnect    {milliseconds} ms per step, at least")
    if e.between_hosts_bytes:
        size = _format_bytes(round(e.between_hosts_bytes))
        lines.append(f"  between hosts   {size} per step that each GPU sends, at least")
    lines += _collective_lines(e)
    if e.images_per_second_per_chip is not None and e.days is not None:
        mfu = "" if e.mfu is None else f", {100 * e.mfu:.1f} % MFU"
        unit = _unit(e)
        hours = "" if e.chip_hours is None else f", {_format_number(e.chip_hours)} {unit}-hours"
        speed = _format_number(e.images_per_second_per_chip)
        lines.append(f"  speed           {speed} images/s/{unit}{mfu}, at most")
        if e.steps:  # not known without data for a config of epochs
            lines.append(f"  {e.steps:,} steps  {_format_number(e.days)} days{hours}, at least")
    return lines


def _collective_lines(e: Estimate) -> list[str]:
    collectives = e.collectives or []
    lines = [
        f"    {c['kind']:<20}{c['bytes'] / 1e6:>10,.4g} MB × {c['executions']:<6,} "
        f"over {c['group_size'] or e.devices}{_hosts_text(c['hosts'])}"
        for c in collectives[:_MAX_COLLECTIVES]
    ]
    if len(collectives) > _MAX_COLLECTIVES:
        lines.append(f"    and {len(collectives) - _MAX_COLLECTIVES} smaller")
    return lines


def _hosts_text(hosts: int | None) -> str:
    return f" on {hosts} hosts" if hosts is not None and hosts > 1 else ""


def _proposals_text(proposals: Sequence[Estimate]) -> str:
    if not proposals:
        return "\nno alternative that was tried fits: use more chips or a smaller model"
    lines = ["\nalternatives that fit (compiled, too):"]
    for e in proposals:
        time = (
            ""
            if e.step_seconds is None
            else f", {_format_number(1e3 * e.step_seconds)} ms per step"
        )
        time = ", time unknown" if e.time_unknown else time
        lines.append(f"  {search.override_flags(e.overrides)}")
        lines.append(f"      {_format_bytes(e.hbm_bytes)} per device{time}")
    if any("batch_size" in e.overrides for e in proposals):
        lines.append("a smaller batch changes the training; the others give the same numbers")
    return "\n".join(lines)


def _sweep_table(rows: Sequence[Estimate | Rejected]) -> str:
    keys = list(rows[0].overrides) if rows else []
    header = [*keys, "GiB", "ms", "images/s/chip", "MFU", ""]
    return _align([header, *([*map(str, r.overrides.values()), *_cells(r)] for r in rows)])


def _cells(row: Estimate | Rejected) -> list[str]:
    if isinstance(row, Rejected):
        return ["", "", "", "", row.error]
    size = f"{row.hbm_bytes / _GIB:.2f}"
    if row.estimated_seconds is None:
        reason = "time unknown" if row.time_unknown else ""
        return [size, "", "", "", reason if row.fits else "does not fit"]
    milliseconds = [1e3 * row.estimated_seconds, 1e3 * (row.interconnect_seconds or 0)]
    return [
        size,
        " + ".join(map(_format_number, milliseconds)),
        _format_number(row.images_per_second_per_chip or 0),
        "" if row.mfu is None else f"{100 * row.mfu:.1f} %",
        "",
    ]


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False))
        + f"  {row[-1]}".rstrip()
        for row in rows
    )


def _row_to_dict(row: Estimate | Rejected) -> JsonObject:
    if isinstance(row, Estimate):
        return row.to_dict()
    return {"overrides": dict(row.overrides), "fits": False, "error": row.error}
