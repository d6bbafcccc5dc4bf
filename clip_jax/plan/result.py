"""The result of a plan: what a training step needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.io.files import JsonObject
from clip_jax.plan.collectives import CollectiveSummary

PARTS = ("parameters", "optimizer", "batch", "activations")
DAY = 86_400  # seconds


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step needs, as the compiler estimates it; nothing was run. None means unknown.

    Attributes:
      topology: the name of the topology.
      overrides: the keys that differ from the requested config, with their values.
      devices: the number of devices; each is a chip, or half a chip of TPU v2, v3 and 7x.
      chips: the number of chips to pay for; None for CPUs.
      fits: whether the step fits into the memory of the devices.
      hbm_bytes: memory per device; if the step does not fit, what the compiler says it needs.
      hbm: its parts (`PARTS`); activations are everything that is not in the other parts.
      hbm_capacity_bytes: the memory of a device that programs can use.
      estimated_seconds: the time of all operations, one after the other, without collectives and
        kernels; on GPUs a lower bound of it.
      interconnect_seconds: the time of the collectives if all links are always busy, which is a
        lower bound.
      model_flops: model FLOPs of a step on all devices, see `clip_jax.training.flops`.
      collectives: the collectives of a step, merged by kind and size.
      between_hosts_bytes: what a GPU sends to other hosts in a step, at least; None for others.
      memory_fraction: the share of a GPU's memory that JAX takes; None for others.
      kernels: custom kernels, which the compiler does not estimate, with their executions per step.
      unread_loops: loops with unknown trip counts, which are counted once.
      product_flops: FLOPs of the matrix products and convolutions in the compiled step, on all
        devices, without kernels.
      time_unknown: why a step that fits has no time; empty if it has one.
      batch_size: the number of pairs in a step.
      chunks: the rows that a layer of the image and of the text tower processes at a time; 0: all.
      steps: the number of steps of the whole run.
      peak: the peak FLOP/s of a device.
      compile_seconds: the time to compile the step on this machine.
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
    collectives: list[CollectiveSummary] | None
    between_hosts_bytes: float | None
    memory_fraction: float | None
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
        """A lower bound of the time of a step.

        It is the longer of compute and interconnect time, as if they overlapped.
        """
        if self.estimated_seconds is None:
            return None
        return max(self.estimated_seconds, self.interconnect_seconds or 0.0)

    @property
    def images_per_second_per_chip(self) -> float | None:
        """An upper bound of the images per second and chip."""
        seconds = self.step_seconds
        return self.batch_size / seconds / (self.chips or self.devices) if seconds else None

    @property
    def mfu(self) -> float | None:
        """An upper bound of the model FLOP/s as a share of the peak."""
        if not self.step_seconds or not self.peak:
            return None
        return self.model_flops / self.step_seconds / self.devices / self.peak

    @property
    def days(self) -> float | None:
        """A lower bound of the days that all steps take."""
        return self.steps * self.step_seconds / DAY if self.step_seconds else None

    @property
    def chip_hours(self) -> float | None:
        """A lower bound of the chip-hours that all steps take."""
        return self.days * 24 * self.chips if self.days and self.chips else None

    def to_dict(self) -> JsonObject:
        """Returns all fields and properties as plain values, for JSON."""
        derived = ("step_seconds", "images_per_second_per_chip", "mfu", "days", "chip_hours")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["chunks"] = dict(zip(("image", "text"), self.chunks, strict=True))
        return {**values, **{name: getattr(self, name) for name in derived}}
