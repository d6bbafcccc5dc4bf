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
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from clip_jax.distributed import hardware, sharding
from clip_jax.distributed.hardware import Chip
from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig, TextTowerConfig, VisionConfig
from clip_jax.plan import program, topology
from clip_jax.plan.topology import Topology
from clip_jax.training import flops, setup

PARTS = ("parameters", "optimizer", "batch", "activations")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_AMOUNT = r"([\d.]+)([KMGTP]?)i?B?"
_WANTED = (
    re.compile(rf"memory required .*?\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"memory space hbm\. Used {_AMOUNT} of {_AMOUNT} hbm", re.IGNORECASE),
)
DAY = 86_400
# Of the model's FLOPs, a step has at least this share in its products. The formula also counts the
# gradient by the pixels, padding of convolutions, and (see `_least_share`) whole last layers.
_LEAST_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step takes, as a compiler sees it; nothing was run. None: not known.

    topology: its name.
    overrides: the keys that differ from the config that was asked for, with their values.
    devices: how many work on a step; each is a chip, but of TPU v2, v3 and 7x half of one.
    chips: how many are paid for; None for CPUs.
    fits: whether the step fits into the devices' memory.
    hbm_bytes: that it takes of each; of what does not fit, that it asks for.
    hbm: the same by what lies there (`PARTS`); activations are all that is not the rest.
    hbm_capacity_bytes: that there are of each.
    estimated_seconds: of its operations, one after the other; no collective and no kernel is in it.
    interconnect_seconds: that collectives take at least, were every link always busy.
    model_flops: of a step on all devices, see `clip_jax.training.flops`.
    collectives: each kind and size with how often a step has it.
    kernels: custom calls, of which the compiler estimates nothing, with how often a step runs each.
    unread_loops: loops counted once, as the number of their rounds could not be read.
    product_flops: of the matrix products and convolutions in the compiled step, on all devices;
      those in kernels are not in it.
    time_unknown: why there is no estimate of the time although the step fits; empty where there is
      one.
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
    hbm_bytes: int
    hbm: Mapping[str, int]
    hbm_capacity_bytes: int
    estimated_seconds: float | None
    interconnect_seconds: float | None
    model_flops: int
    collectives: list[dict[str, Any]] | None
    kernels: Mapping[str, int]
    unread_loops: list[str]
    product_flops: int
    time_unknown: str
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


def recipe_of(c: ConfigDict, name: str) -> tuple[setup.Recipe, Topology]:
    """How a config trains on a topology, checked as training would."""
    place = topology.find(name)
    config, architecture, objective = setup.checked(c, len(place.devices))
    mesh = sharding.make_mesh(config.mesh.to_dict(), place.devices)
    return setup.Recipe(config, architecture, objective, mesh), place


def estimated(
    c: ConfigDict,
    name: str,
    dump: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Estimate:
    """`clip_jax.plan.estimate`; `overrides` are only noted."""
    made, place = recipe_of(c, name)
    device = place.devices[0]
    chip = hardware.chip_of_device(device)
    began = time.monotonic()
    found = compiled(made.lower(), device.platform, dump)
    seconds = time.monotonic() - began
    held, capacity = _memory(found, made), _capacity(place.name)
    total = sum(held.values())
    clock = chip.clock if chip else None
    timed = found.executable is not None and device.platform == "tpu"
    seconds_per_step = found.program.cycles / (clock * 1e9) if timed and clock else None
    model_flops = flops.step(made.architecture, made.objective, c.batch_size)
    product_flops = found.program.product_flops * len(place.devices)
    refused = ""
    if seconds_per_step is not None and chip is not None:
        peak_seconds = model_flops / len(place.devices) / chip.peak
        share, least = product_flops / model_flops, _least_share(made.architecture)
        refused = _implausible(seconds_per_step, peak_seconds, share, least)
    return Estimate(
        topology=place.name,
        overrides=dict(overrides or {}),
        devices=len(place.devices),
        chips=place.chips,
        fits=found.executable is not None and total <= capacity,
        hbm_bytes=total,
        hbm=held,
        hbm_capacity_bytes=capacity,
        estimated_seconds=None if refused else seconds_per_step,
        interconnect_seconds=_interconnect(found.program, chip) if timed else None,
        model_flops=model_flops,
        collectives=found.program.exchanges() if found.executable is not None else None,
        kernels=found.program.kernels,
        unread_loops=found.program.endless,
        product_flops=product_flops,
        time_unknown=refused,
        batch_size=c.batch_size,
        chunks=made.chunks,
        steps=c.steps,
        peak=chip.peak if chip else None,
        compile_seconds=seconds,
    )


def _least_share(architecture: CLIPConfig) -> float:
    """The share of the model's FLOPs that products of a step have at least.

    The last layer of a transformer computes only the tokens that are read out: of few layers that
    is much.
    """
    depths = [
        tower.layers
        for tower in (architecture.vision, architecture.text)
        if isinstance(tower, VisionConfig | TextTowerConfig)
    ]
    return _LEAST_SHARE * (1 - 1 / min(depths))


def _implausible(
    seconds: float, peak_seconds: float, product_share: float, least_share: float
) -> str:
    """Why an estimate of a step's time cannot be right; empty where it may be.

    A compiler's text that is read wrongly must not become a number. Two independent bounds show it:
    the chip's peak, and the products that the model needs.

    Args:
      seconds: the estimate.
      peak_seconds: that the model's FLOPs take at the chip's peak.
      product_share: FLOPs of the products counted in the program, over the model's FLOPs.
      least_share: that this share cannot be below.
    """
    if seconds < peak_seconds:
        return (
            f"the compiler's cycles come to {1e3 * seconds:.3g} ms, less than the "
            f"{1e3 * peak_seconds:.3g} ms that the model's FLOPs take at the chip's peak"
        )
    if product_share < least_share:
        return (
            f"only {100 * product_share:.0f} % of the model's FLOPs were found in the compiled "
            "program"
        )
    return ""


class Compiled(NamedTuple):
    """What came of compiling.

    executable: the program; None where a device has not the memory for it.
    wanted: bytes that it then asks for.
    program: what it does.
    """

    executable: jax.stages.Compiled | None
    wanted: int
    program: program.Program


def compiled(lowered: jax.stages.Lowered, platform: str, dump: str | None = None) -> Compiled:
    """A function lowered for a platform, compiled and read.

    Args:
      lowered: the function.
      platform: tpu or cpu.
      dump: a folder that keeps what the compiler writes; None: nothing is kept.

    Raises:
      UserError: the compiler fails, not for want of memory; or the folder cannot be written.
    """
    options: dict[str, str | bool] = {"xla_dump_hlo_as_text": True}
    if platform == "cpu":  # what LLVM does changes nothing that is told here
        options["xla_backend_optimization_level"] = "0"
    with _folder(dump) as folder, _nothing_cached():
        try:
            executable = lowered.compile(compiler_options={"xla_dump_to": folder, **options})
        except jax.errors.JaxRuntimeError as error:
            if amounts := _wanted(str(error)):
                return Compiled(None, amounts[0], program.Program([], [], {}, []))
            line = " ".join(str(error).split())
            raise UserError(f"the compiler fails on this step: {line:.600}") from None
        return Compiled(executable, 0, program.read(_text(executable, Path(folder))))


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


def _text(executable: jax.stages.Compiled, folder: Path) -> str:
    written = sorted(folder.glob("*after_codegen.txt"), key=lambda path: path.stat().st_size)
    return written[-1].read_text() if written else executable.as_text() or ""


@functools.lru_cache
def _capacity(name: str) -> int:
    """Bytes of a topology's device that a program may use."""
    place = topology.find(name)
    if place.devices[0].platform == "cpu":
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
    chip = hardware.chip_of_device(place.devices[0])
    assert chip is not None
    return chip.hbm


def _memory(found: Compiled, made: setup.Recipe) -> dict[str, int]:
    """Bytes of a device by what lies there; of what does not fit, as if nothing were padded."""
    like, batch = made.state_like, made.batch_like(made.architecture.text.context_length)
    where = sharding.batch_sharding(made.mesh)
    state_formats: Any = jax.tree.map(lambda leaf: Format(None, leaf.sharding), like)
    batch_formats: Any = jax.tree.map(lambda leaf: Format(None, where), batch)
    total = found.wanted
    if found.executable is not None:
        (state_formats, batch_formats), _ = found.executable.input_formats
        used = found.executable.memory_analysis()
        assert used is not None
        total = (
            used.argument_size_in_bytes
            + used.temp_size_in_bytes
            + used.output_size_in_bytes
            - used.alias_size_in_bytes
        )
    f = state_formats
    held = {
        "parameters": _bytes((like.params, like.stats), (f.params, f.stats)),
        "optimizer": _bytes((like.opt_state, like.step), (f.opt_state, f.step)),
        "batch": _bytes(batch, batch_formats),
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
