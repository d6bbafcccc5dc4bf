"""The devices that a step is compiled for: TPU slices and GPUs, which need not exist, or CPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from clip_jax.errors import UserError
from clip_jax.plan import gpus
from clip_jax.plan.gpus import Gpu

EXAMPLES = "v5e:16x16, v5e-256, v4:2x2x2, v5p:4x4x4, v5p:4x4x4x2, v6e:8x8, h100:8, a100:4x8, cpu:8"

# libtpu looks for its TPU, logs loudly that there is none, and allows one process at a time. Plans
# execute nothing on a TPU, so these settings replace the search.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# The chips of the largest slice, and the number of axes of a slice.
_MAX_CHIPS = {"v2": 256, "v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}
_AXES = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6litepod": "v6e", "7x": "tpu7x", "v7x": "tpu7x"}
# The name of a slice counts chips for v5e and v6e, and TensorCores for the other generations.
_CORES = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2, "tpu7x": 2}
_MAX_GPUS_PER_HOST = 16
_MEGACORE = ("v4", "v5p")  # by default both cores of a chip are one device
# What makes each core of a chip of these a device of its own, in the environment of a training run.
SPLIT_CHIPS = "LIBTPU_INIT_ARGS=--deepsea_chip_config_name=legacy"


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices that a step is compiled for.

    Attributes:
      name: such as `v5e:16x16`.
      devices: one for each GPU and for each TPU chip; two for each chip of v2, v3 and 7x, and where
        the name says so; or CPU devices.
      chips: the number of chips or GPUs to pay for; None for CPUs.
      gpu: the kind of GPU; None for others.
    """

    name: str
    devices: Sequence[Any]
    chips: int | None
    gpu: Gpu | None = None


def is_split(name: str) -> bool:
    """Returns whether a `Topology.name` makes each core of a v4 or v5p chip a device."""
    return name.startswith(_MEGACORE) and name.count("x") == 3


def set_libtpu_environment(environment: dict[str, str] | os._Environ[str]) -> None:
    """Sets the environment that libtpu reads; must be called before libtpu is loaded."""
    environment.update(LIBTPU_ENVIRONMENT)


@functools.lru_cache
def find_topology(name: str) -> Topology:
    """Returns the topology with the given name.

    Args:
      name: a TPU generation and the chips along each axis, such as `v5e:16x16`; for v4 and v5p also
        with a last `x2`, such as `v5p:4x4x4x2`: each core of a chip is a device, see `SPLIT_CHIPS`;
        the name of a slice in Google Cloud, such as `v5litepod-256`; a kind of GPU and their
        number, or hosts × GPUs of each, such as `h100:8` and `a100:4x8`; or `cpu:N`, N devices of
        this machine's processor.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    generation, _, size = name.lower().replace("=", ":").partition(":")
    if generation == "cpu":
        return Topology(f"cpu:{size}", _cpu_devices(name, size), None)
    if generation in gpus.GPUS:
        return _gpu_topology(name, generation, size)
    if not size and (slice_name := re.fullmatch(r"(.+)-(\d{1,6})", generation)):
        generation = _ALIASES.get(slice_name[1], slice_name[1])
        size = _usual_shape(generation, int(slice_name[2]) // _CORES.get(generation, 1))
    generation = _ALIASES.get(generation, generation)
    sides = [int(n) for n in size.split("x")] if re.fullmatch(r"\d{1,4}(x\d{1,4})*", size) else []
    split = generation in _MEGACORE and sides[3:] == [2]
    sides = sides[:3] if split else sides
    if generation not in _AXES or len(sides) != _AXES[generation] or 0 in sides:
        raise UserError(f"unknown topology {name!r}; use one such as {EXAMPLES}")
    chips = math.prod(sides)
    if chips > _MAX_CHIPS[generation]:
        raise UserError(
            f"topology {name!r}: a slice of {generation} has at most {_MAX_CHIPS[generation]} chips"
        )
    return Topology(f"{generation}:{size}", _tpu_devices(name, generation, sides, split), chips)


def _usual_shape(generation: str, chips: int) -> str:
    """Returns the usual shape of a slice of so many chips: the nearest to a square or a cube."""
    if chips < 1:
        return ""
    if _AXES.get(generation) == 2:
        side = max(n for n in range(1, math.isqrt(chips) + 1) if chips % n == 0)
        return f"{side}x{chips // side}"
    return _usual_cuboid(chips)


def _usual_cuboid(chips: int) -> str:
    first = max(n for n in range(1, round(chips ** (1 / 3)) + 1) if chips % n == 0)
    rest = chips // first
    second = max(n for n in range(1, math.isqrt(rest) + 1) if rest % n == 0)
    sides = sorted((first, second, rest // second))
    # the smallest slice of a host is 2x2x1
    return "x".join(map(str, sides[::-1] if sides[0] == 1 else sides))


def _tpu_devices(name: str, generation: str, sides: list[int], split: bool) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler: pip install 'clip_jax[plan]' "
            "(libtpu; no TPU is needed)"
        )
    set_libtpu_environment(os.environ)
    import jax
    from jax.experimental import topologies

    options: dict[str, str | list[int]] = {}
    if generation in _MEGACORE:
        options["chip_config_name"] = "legacy" if split else "megacore"
    if any(n % 2 for n in sides[:2]):  # by default a host has 2×2 chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    shape = f"{generation}:{'x'.join(map(str, sides))}"
    # JAX reads XLA_FLAGS here. libtpu would end the process at a flag that it does not know.
    jax.devices("cpu")
    os.environ.pop("XLA_FLAGS", None)
    try:
        return topologies.get_topology_desc(shape, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no topology {name} ({reason}); use one such as {EXAMPLES}") from None


def _gpu_topology(name: str, kind: str, size: str) -> Topology:
    match = re.fullmatch(r"(?:([1-9]\d{0,3})x)?([1-9]\d?)", size)
    if not match or int(match[2]) > _MAX_GPUS_PER_HOST:
        raise UserError(
            f"unknown topology {name!r}: use {kind}:N for N GPUs of one host, at most "
            f"{_MAX_GPUS_PER_HOST}, or {kind}:HOSTSxN for several hosts"
        )
    gpus.require_compiler(name)
    hosts, count, gpu = int(match[1] or 1), int(match[2]), gpus.GPUS[kind]
    gpus.load_compiler()
    from jax.experimental import topologies

    from clip_jax.distributed import hardware

    chip = hardware.chip_of(gpu.kind)
    assert chip is not None and chip.bandwidth is not None
    with gpus.without_native_logs():
        devices = topologies.get_topology_desc(
            "",
            "cuda",
            target_config=gpus.target_config(gpu, chip.bandwidth),
            topology=f"1x{hosts}x{count}",  # slices × hosts × GPUs
        ).devices
    return Topology(f"{kind}:{size}", devices, len(devices), gpu)


def _cpu_devices(name: str, size: str) -> Sequence[Any]:
    import jax

    if not re.fullmatch("[1-9][0-9]{0,3}", size):
        raise UserError(f"unknown topology {name!r}: cpu:N is N devices, such as cpu:8")
    count = int(size)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is initialized and keeps its devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology={name}: JAX already runs with {len(devices)} CPU devices; start with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
