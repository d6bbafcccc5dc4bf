"""Compiles a training step for devices that need not exist, and estimates its memory and time."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from clip_jax.config.checks import check
from clip_jax.distributed import hardware, sharding
from clip_jax.distributed.hardware import Chip
from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig
from clip_jax.plan import compiling, gpus
from clip_jax.plan.collectives import summaries
from clip_jax.plan.program import Program
from clip_jax.plan.result import Estimate
from clip_jax.plan.roofline import Roofline
from clip_jax.plan.topology import Topology, find_topology
from clip_jax.training import class_labels, setup

# The products of a step have at least this share of the model's FLOPs. The formula for these also
# counts the gradient by the pixels, padding of convolutions, and (see `_min_product_share`) the
# whole last layer of a tower.
_MIN_PRODUCT_SHARE = 0.75


def make_recipe(config: ConfigDict, topology_name: str) -> tuple[setup.Recipe, Topology]:
    """Returns how a config trains on a topology, with the same checks as training.

    Returns:
      The recipe and the topology.

    Raises:
      UserError: the config or the topology is wrong.
    """
    topology = find_topology(topology_name)
    typed_config, architecture, objective = setup.checked(
        class_labels.with_classifier(check(config), class_labels.open_for_labels),
        len(topology.devices),
    )
    mesh = sharding.make_mesh(typed_config.mesh.to_dict(), topology.devices)
    return setup.Recipe(typed_config, architecture, objective, mesh), topology


def estimate_step(
    config: ConfigDict,
    topology_name: str,
    dump: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Estimate:
    """Compiles a training step and estimates what it needs, see `clip_jax.plan.estimate`.

    Args:
      config: as for `estimate`.
      topology_name: as for `estimate`.
      dump: as for `estimate`.
      overrides: the keys that differ from the requested config; they only go into the result.
    """
    recipe, topology = make_recipe(config, topology_name)
    device = topology.devices[0]
    chip = hardware.chip_of_device(device)
    start = time.monotonic()
    machine = _roofline(topology, recipe)
    result = compiling.compile_lowered(lower(recipe, topology), device.platform, dump, machine)
    compile_seconds = time.monotonic() - start
    hbm, capacity = _memory_parts(result, recipe), _capacity(topology.name)
    model_flops = recipe.step_flops()
    product_flops = result.program.product_flops * len(topology.devices)
    times = _Times(None, None, "")
    if result.executable is not None and chip is not None:
        min_share = _min_product_share(recipe.architecture)
        flops_per_device = model_flops / len(topology.devices)
        if topology.gpu is not None:
            times = _gpu_times(result.program, chip, topology.gpu, flops_per_device, min_share)
        else:
            times = _estimate_times(result.program, chip, flops_per_device, min_share)
    return Estimate(
        topology=topology.name,
        overrides=dict(overrides or {}),
        devices=len(topology.devices),
        chips=topology.chips,
        fits=result.executable is not None and sum(hbm.values()) <= capacity,
        hbm_bytes=sum(hbm.values()),
        hbm=hbm,
        hbm_capacity_bytes=capacity,
        estimated_seconds=times.compute,
        interconnect_seconds=times.interconnect,
        model_flops=model_flops,
        collectives=summaries(result.program.collectives)
        if result.executable is not None
        else None,
        between_hosts_bytes=times.between_hosts_bytes,
        memory_fraction=None if topology.gpu is None else gpus.memory_fraction(),
        kernels=result.program.kernels,
        unread_loops=result.program.unread_loops,
        product_flops=product_flops,
        time_unknown=times.unknown_reason,
        batch_size=config.batch_size,
        chunks=recipe.chunks,
        steps=config.steps,
        peak=chip.peak if chip else None,
        compile_seconds=compile_seconds,
    )


def lower(recipe: setup.Recipe, topology: Topology) -> jax.stages.Lowered:
    """Traces the training step of a recipe.

    Raises:
      UserError: JAX has no kernels for the GPU while it is not there.
    """
    try:
        return recipe.lower()
    except RuntimeError as error:
        if topology.gpu is None or "No supported GPU" not in str(error):
            raise
        raise UserError(
            f"config.attention={recipe.config.attention}: this version of JAX compiles the kernel "
            f"for an {topology.gpu.kind} only where it is: plan with config.attention=auto"
        ) from None


class _Times(NamedTuple):
    """The seconds of a step for compute and interconnect.

    Attributes:
      compute: None if it is unknown.
      interconnect: None if it is unknown.
      unknown_reason: why there is no compute time; empty if there is, or if there can be none.
      between_hosts_bytes: what a GPU sends to other hosts; None for others.
    """

    compute: float | None
    interconnect: float | None
    unknown_reason: str
    between_hosts_bytes: float | None = None


def _estimate_times(
    step: Program, chip: Chip, flops_per_device: float, min_product_share: float
) -> _Times:
    """Returns the times of a step on a TPU; a time that cannot be right is left out."""
    sent = sum(c.bytes_sent for c in step.collectives)
    interconnect = None if chip.interconnect is None else sent / chip.interconnect
    if not chip.clock:
        return _Times(None, interconnect, "")
    compute = step.cycles / (chip.clock * 1e9)
    reason = _implausible(
        compute,
        flops_per_device / chip.peak,
        step.product_flops / flops_per_device,
        min_product_share,
    )
    return _Times(None if reason else compute, interconnect, reason)


def _roofline(topology: Topology, recipe: setup.Recipe) -> Roofline | None:
    """Returns what bounds the time on GPUs; None for other devices."""
    if topology.gpu is None:
        return None
    devices = recipe.mesh.devices.flat
    chip = hardware.chip_of_device(devices[0])
    assert chip is not None
    return Roofline(chip, topology.gpu.l2, [device.process_index for device in devices])


def _gpu_times(
    step: Program, chip: Chip, gpu: gpus.Gpu, flops_per_device: float, min_product_share: float
) -> _Times:
    """Returns lower bounds of the times of a step on GPUs."""
    assert chip.nvlink is not None
    between = sum(c.bytes_between_hosts for c in step.collectives)
    inside = sum(c.bytes_sent for c in step.collectives if c.hosts == 1)
    interconnect = max(inside / chip.nvlink, between / gpu.network if gpu.network else 0.0)
    share = step.product_flops / flops_per_device
    reason = _too_few_products(share) if share < min_product_share else ""
    return _Times(None if reason else step.seconds, interconnect, reason, between)


def _min_product_share(architecture: CLIPConfig) -> float:
    """Returns the smallest plausible share of a step's products in the model's FLOPs.

    The last layer of a transformer computes only the tokens that are read out, which matters if
    there are few layers.
    """
    depths = [tower.blocks for tower in (architecture.vision, architecture.text) if tower.blocks]
    return _MIN_PRODUCT_SHARE * (1 - 1 / min(depths, default=math.inf))


def _implausible(
    seconds: float, peak_seconds: float, product_share: float, min_product_share: float
) -> str:
    """Returns the reason why an estimated time cannot be right, or an empty string.

    Output of the compiler that is misread must not become a number. Two independent bounds reveal
    it: the peak of the chip, and the products that the model needs.

    Args:
      seconds: the estimate.
      peak_seconds: the time of the model's FLOPs at the peak of the chip.
      product_share: FLOPs of the products in the program, divided by the model's FLOPs.
      min_product_share: a lower bound of this share.
    """
    if seconds < peak_seconds:
        return (
            f"the compiler's cycles take {1e3 * seconds:.3g} ms, less than the "
            f"{1e3 * peak_seconds:.3g} ms of the model's FLOPs at the chip's peak"
        )
    if product_share < min_product_share:
        return _too_few_products(product_share)
    return ""


def _too_few_products(share: float) -> str:
    return f"the compiled program contains only {100 * share:.0f} % of the model's FLOPs"


@functools.lru_cache
def _capacity(topology_name: str) -> int:
    """Returns the bytes of a device that a program can use."""
    topology = find_topology(topology_name)
    devices = topology.devices
    if topology.gpu is not None:
        return int(topology.gpu.memory * gpus.memory_fraction())
    if devices[0].platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return memory // len(devices)
    # The compiler reserves some memory. It tells how much is left in the error for a huge program.
    replicated = NamedSharding(jax.sharding.Mesh(np.array(devices), ("all",)), jax.P())
    huge = jax.ShapeDtypeStruct((1 << 37,), np.float32)
    try:
        jax.jit(lambda x: x + 1, in_shardings=replicated).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if amounts := compiling.find_out_of_memory(str(error)):
            return amounts.available
    chip = hardware.chip_of_device(devices[0])
    assert chip is not None
    return chip.hbm


def _memory_parts(result: compiling.CompileResult, recipe: setup.Recipe) -> dict[str, int]:
    """Returns the bytes of each of `PARTS` on a device; no padding if the step does not fit."""
    state = recipe.state_like
    batch = recipe.batch_like(recipe.architecture.text.context_length)
    batch_sharding = sharding.batch_sharding(recipe.mesh)
    state_formats: Any = jax.tree.map(lambda leaf: Format(None, leaf.sharding), state)
    batch_formats: Any = jax.tree.map(lambda leaf: Format(None, batch_sharding), batch)
    total = result.requested_bytes
    if result.executable is not None:
        (state_formats, batch_formats), _ = result.executable.input_formats
        stats = result.executable.memory_analysis()
        assert stats is not None
        total = (
            stats.argument_size_in_bytes
            + stats.temp_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
        )
    f = state_formats
    arguments = {
        "parameters": _shard_bytes((state.params, state.stats), (f.params, f.stats)),
        "optimizer": _shard_bytes((state.opt_state, state.step), (f.opt_state, f.step)),
        "batch": _shard_bytes(batch, batch_formats),
    }
    return {**arguments, "activations": total - sum(arguments.values())}


def _shard_bytes(tree: Any, formats: Any) -> int:
    """Returns the bytes of a device's shards of a tree of arrays, with padding of their tiles.

    Arguments that the program does not use, which have no sharding, are not counted.
    """
    return sum(
        _padded_size(form.sharding.shard_shape(leaf.shape), form.layout) * leaf.dtype.itemsize
        for leaf, form in zip(jax.tree.leaves(tree), jax.tree.leaves(formats), strict=True)
        if form.sharding is not None
    )


def _padded_size(shape: tuple[int, ...], layout: Layout | None) -> int:
    """Returns the number of elements of an array, with those that pad its tiles."""
    if layout is None or not layout.tiling:
        return math.prod(shape)
    sides = [shape[i] for i in layout.major_to_minor]
    tile = layout.tiling[0]  # further tiles only order the elements in a tile
    sides = [1] * (len(tile) - len(sides)) + sides
    untiled, tiled = sides[: len(sides) - len(tile)], sides[len(sides) - len(tile) :]
    return math.prod(untiled) * math.prod(-(-n // t) * t for n, t in zip(tiled, tile, strict=True))
