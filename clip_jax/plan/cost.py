"""A training step compiled for devices that need not be there, and what it takes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Layout
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from clip_jax import chips, flops, partition, recipe
from clip_jax.chips import Chip
from clip_jax.errors import UserError
from clip_jax.plan import program, topology
from clip_jax.plan.topology import Topology

PARTS = ("parameters", "optimizer", "batch", "activations")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_AMOUNT = r"([\d.]+)([KMGTP]?)i?B?"
_WANTED = (
    re.compile(rf"memory required .*?\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"memory space hbm\. Used {_AMOUNT} of {_AMOUNT} hbm", re.IGNORECASE),
)
DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step takes, as a compiler sees it; nothing was run. None: not known.

    topology: its name.
    overrides: the keys that differ from the config that was asked for, with their values.
    devices: how many work on a step; each is a chip, but of TPU v2, v3 and 7x half of one.
    chips: how many are paid for; None for CPUs.
    fits: whether the step fits into the devices' memory.
    hbm_bytes: that it takes of each; of what does not fit, that it asks for.
    hbm: the same by what lies there (`PARTS`); what does not fit is not divided.
    hbm_capacity_bytes: that there are of each.
    estimated_seconds: of its operations, one after the other; no collective and no kernel is in it.
    interconnect_seconds: that collectives take at least, were every link always busy.
    model_flops: of a step on all devices, see `clip_jax.flops`.
    collectives: each kind and size with how often a step has it.
    kernels: custom calls, of which the compiler estimates nothing, with how often a step runs each.
    unread_loops: loops counted once, as the number of their rounds could not be read.
    batch_size: pairs of a step.
    chunks: rows that a layer of the image and of the text tower takes at a time; 0: all.
    steps: of the whole run.
    peak: FLOP/s of a device.
    compile_seconds: that compiling took on this machine.
    """

    topology: str
    overrides: Mapping[str, Any]
    devices: int
    chips: int | None
    fits: bool
    hbm_bytes: int | None
    hbm: Mapping[str, int | None]
    hbm_capacity_bytes: int
    estimated_seconds: float | None
    interconnect_seconds: float | None
    model_flops: int
    collectives: list[dict[str, Any]] | None
    kernels: Mapping[str, int]
    unread_loops: list[str]
    batch_size: int
    chunks: tuple[int, int]
    steps: int
    peak: float | None
    compile_seconds: float

    @property
    def step_seconds(self) -> float | None:
        """At least: operations and collectives at the same time, the longer of the two."""
        if self.estimated_seconds is None:
            return None
        return max(self.estimated_seconds, self.interconnect_seconds or 0.0)

    @property
    def images_per_second_per_chip(self) -> float | None:
        """At most."""
        seconds = self.step_seconds
        return self.batch_size / seconds / (self.chips or self.devices) if seconds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOP/s as a share of the peak, at most."""
        if not self.step_seconds or not self.peak:
            return None
        return self.model_flops / self.step_seconds / self.devices / self.peak

    @property
    def days(self) -> float | None:
        """Of all steps, at least."""
        return self.steps * self.step_seconds / DAY if self.step_seconds else None

    @property
    def chip_hours(self) -> float | None:
        """Of all steps, at least."""
        return self.days * 24 * self.chips if self.days and self.chips else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        derived = ("step_seconds", "images_per_second_per_chip", "mfu", "days", "chip_hours")
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["chunks"] = dict(zip(("image", "text"), self.chunks, strict=True))
        return {**found, **{name: getattr(self, name) for name in derived}}


def recipe_of(c: ConfigDict, name: str) -> tuple[recipe.Recipe, Topology]:
    """How a config trains on a topology, checked as training would."""
    place = topology.find(name)
    architecture, objective = recipe.checked(c, len(place.devices))
    mesh = partition.make_mesh(c.mesh.to_dict(), place.devices)
    return recipe.Recipe(c, architecture, objective, mesh), place


def estimated(
    c: ConfigDict,
    name: str,
    dump: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Estimate:
    """`clip_jax.plan.estimate`; `overrides` are only noted."""
    made, place = recipe_of(c, name)
    device = place.devices[0]
    chip = chips.chip_of_device(device)
    began = time.monotonic()
    lowered = made.lower()
    with _folder(dump) as folder:
        compiled, wanted = _compile(lowered, folder, c)
        read = program.Program([], [], {}, [])
        if compiled is not None:
            read = program.read(_text(compiled, Path(folder)))
    seconds = time.monotonic() - began
    held = _memory(compiled, made) if compiled is not None else dict.fromkeys(PARTS)
    total = wanted if compiled is None else sum(v or 0 for v in held.values())
    capacity = _capacity(device.platform, place.name)
    timed = compiled is not None and device.platform == "tpu"
    clock = chip.clock if chip else None
    return Estimate(
        topology=place.name,
        overrides=dict(overrides or {}),
        devices=len(place.devices),
        chips=place.chips,
        fits=compiled is not None and total is not None and total <= capacity,
        hbm_bytes=total,
        hbm=held,
        hbm_capacity_bytes=capacity,
        estimated_seconds=read.cycles / (clock * 1e9) if timed and clock else None,
        interconnect_seconds=_interconnect(read, chip) if timed else None,
        model_flops=flops.step(made.architecture, c.batch_size),
        collectives=read.exchanges() if compiled is not None else None,
        kernels=read.kernels,
        unread_loops=read.endless,
        batch_size=c.batch_size,
        chunks=made.chunks,
        steps=c.steps,
        peak=chip.peak if chip else None,
        compile_seconds=seconds,
    )


@contextlib.contextmanager
def _folder(kept: str | None) -> Iterator[str]:
    """Where the compiler writes: a folder that the user wants to have, or one for the moment."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as folder:
            yield folder
        return
    try:
        os.makedirs(kept, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dump={kept}: {error.strerror}") from None
    yield kept


def _compile(
    lowered: jax.stages.Lowered, folder: str, c: ConfigDict
) -> tuple[jax.stages.Compiled | None, int | None]:
    """The program; or None and the bytes that it wants of a device that has fewer."""
    options: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
        with _nothing_cached():
            return lowered.compile(compiler_options=options), None
    except jax.errors.JaxRuntimeError as error:
        if amounts := _wanted(str(error)):
            return None, amounts[0]
        line = " ".join(str(error).split())
        raise UserError(f"the TPU's compiler fails on this step: {line:.600}") from None


@contextlib.contextmanager
def _nothing_cached() -> Iterator[None]:
    """Programs are compiled anew: one from JAX's cache would leave no text."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _wanted(message: str) -> tuple[int, int] | None:
    """Bytes wanted and bytes there, of what the compiler says when memory is not enough."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _WANTED:
        if found := pattern.search(message):
            n, unit, of, of_unit = found.groups()
            return round(float(n) * 2 ** _UNITS[unit]), round(float(of) * 2 ** _UNITS[of_unit])
    return None


def _text(compiled: jax.stages.Compiled, folder: Path) -> str:
    written = sorted(folder.glob("*after_codegen.txt"), key=lambda path: path.stat().st_size)
    return written[-1].read_text() if written else compiled.as_text() or ""


@functools.lru_cache
def _capacity(platform: str, name: str) -> int:
    """Bytes of a device that a program may use."""
    place = topology.find(name)
    if platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return memory // len(place.devices)
    # only the compiler knows what it keeps for itself, and says so when it is asked too much
    everywhere = NamedSharding(jax.sharding.Mesh(np.array(place.devices), ("all",)), jax.P())
    too_large = jax.ShapeDtypeStruct((1 << 37,), np.float32)
    try:
        jax.jit(lambda x: x + 1, in_shardings=everywhere).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if amounts := _wanted(str(error)):
            return amounts[1]
    chip = chips.chip_of_device(place.devices[0])
    assert chip is not None
    return chip.hbm


def _memory(compiled: jax.stages.Compiled, made: recipe.Recipe) -> dict[str, int | None]:
    """Bytes of a device by what lies there."""
    used = compiled.memory_analysis()
    assert used is not None
    total = (
        used.argument_size_in_bytes
        + used.temp_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
    )
    (state, batch), _ = compiled.input_formats
    like = made.state_like
    held = {
        "parameters": _bytes((like.params, like.stats), (state.params, state.stats)),
        "optimizer": _bytes((like.opt_state, like.step), (state.opt_state, state.step)),
        "batch": _bytes(made.batch_like(made.architecture.text.context_length), batch),
    }
    return {**held, "activations": total - sum(held.values())}


def _bytes(tree: Any, formats: Any) -> int:
    """Of a device's shards, as they lie: with what their tiles add at the edges."""
    return sum(
        _padded(form.sharding.shard_shape(leaf.shape), form.layout) * leaf.dtype.itemsize
        for leaf, form in zip(jax.tree.leaves(tree), jax.tree.leaves(formats), strict=True)
    )


def _padded(shape: tuple[int, ...], layout: Layout | None) -> int:
    """Elements of an array of a shape with those that only fill its tiles up."""
    if layout is None or not layout.tiling:
        return math.prod(shape)
    sides = [shape[i] for i in layout.major_to_minor]
    tile = layout.tiling[0]  # those after it only order what is in one
    sides = [1] * (len(tile) - len(sides)) + sides
    whole, edges = sides[: len(sides) - len(tile)], sides[len(sides) - len(tile) :]
    return math.prod(whole) * math.prod(-(-n // t) * t for n, t in zip(edges, tile, strict=True))


def _interconnect(read: program.Program, chip: Chip | None) -> float | None:
    """Seconds that a chip's links take at least for what it sends."""
    if chip is None or chip.interconnect is None:
        return None
    return sum(c.sent for c in read.collectives) / chip.interconnect
