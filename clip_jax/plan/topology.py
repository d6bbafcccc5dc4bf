"""The devices that a step is compiled for: slices of TPUs that need not be there, or CPUs."""

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

EXAMPLES = "v5e:2x2, v5e:16x16, v5e-256, v4:2x2x2, v5p:4x4x4, v6e:8x8, cpu:8"

# libtpu asks its surroundings which TPU it is on, says loudly that there is none, and lets one
# process at a time in; it executes nothing here.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# Chips of the largest slice, and the axes of any.
_LARGEST = {"v2": 256, "v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}
_AXES = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6litepod": "v6e", "7x": "tpu7x", "v7x": "tpu7x"}
# A slice's name counts chips of v5e and v6e, and TensorCores of the others.
_CORES = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2, "tpu7x": 2}
_MEGACORE = ("v4", "v5p")  # of these both cores of a chip are one device


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a compiler knows.

    name: as in `v5e:16x16`.
    devices: one for each chip; of v2, v3 and 7x for each half of it; or CPU devices.
    chips: how many there are to pay for; None for CPUs.
    """

    name: str
    devices: Sequence[Any]
    chips: int | None


def quiet(environment: dict[str, str] | os._Environ[str]) -> None:
    """Sets what libtpu must find before it is loaded; the earlier the better."""
    environment.update(ENVIRONMENT)


@functools.lru_cache
def find(name: str) -> Topology:
    """The topology called so.

    Args:
      name: a TPU's generation and the chips along each axis, such as `v5e:16x16`, or their number,
        as Google Cloud calls slices, such as `v5litepod-256`; or `cpu:N`, N devices of this
        machine's processor.

    Raises:
      UserError: there is none, or libtpu is missing.
    """
    kind, _, size = name.lower().replace("=", ":").partition(":")
    if kind == "cpu":
        return Topology(f"cpu:{size}", _cpus(name, size), None)
    if not size and (slice_ := re.fullmatch(r"(.+)-(\d{1,6})", kind)):
        kind = _ALIASES.get(slice_[1], slice_[1])
        size = _shape(kind, int(slice_[2]) // _CORES.get(kind, 1))
    kind = _ALIASES.get(kind, kind)
    sides = [int(n) for n in size.split("x")] if re.fullmatch(r"\d{1,4}(x\d{1,4})*", size) else []
    if kind not in _AXES or len(sides) != _AXES[kind] or 0 in sides:
        raise UserError(f"unknown topology {name!r}: give one such as {EXAMPLES}")
    chips = math.prod(sides)
    if chips > _LARGEST[kind]:
        raise UserError(
            f"topology {name!r}: no slice of {kind} has more than {_LARGEST[kind]} chips"
        )
    return Topology(f"{kind}:{size}", _tpus(name, kind, sides), chips)


def _shape(kind: str, chips: int) -> str:
    """The usual slice of so many chips: as near to a square or a cube as there is."""
    if chips < 1:
        return ""
    if _AXES.get(kind) == 2:
        side = max(n for n in range(1, math.isqrt(chips) + 1) if chips % n == 0)
        return f"{side}x{chips // side}"
    return _cuboid(chips)


def _cuboid(chips: int) -> str:
    first = max(n for n in range(1, round(chips ** (1 / 3)) + 1) if chips % n == 0)
    rest = chips // first
    second = max(n for n in range(1, math.isqrt(rest) + 1) if rest % n == 0)
    sides = sorted((first, second, rest // second))
    # the smallest slice of a host is 2x2x1
    return "x".join(map(str, sides[::-1] if sides[0] == 1 else sides))


def _tpus(name: str, kind: str, sides: list[int]) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU's compiler: pip install 'clip_jax[plan]' "
            "(libtpu; no TPU is needed)"
        )
    quiet(os.environ)
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind in _MEGACORE else {}
    if any(n % 2 for n in sides[:2]):  # a host has 2×2 chips where nothing else is said
        options["chips_per_host_bounds"] = [1, 1, 1]
    shape = f"{kind}:{'x'.join(map(str, sides))}"
    # libtpu ends the process at a flag of XLA that it does not know; JAX has read them by now
    jax.devices("cpu")
    os.environ.pop("XLA_FLAGS", None)
    try:
        return topologies.get_topology_desc(shape, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        why = " ".join(str(error).split())
        raise UserError(f"no topology {name} ({why}): give one such as {EXAMPLES}") from None


def _cpus(name: str, size: str) -> Sequence[Any]:
    import jax

    if not re.fullmatch("[1-9][0-9]{0,3}", size):
        raise UserError(f"unknown topology {name!r}: cpu:N is N devices, such as cpu:8")
    count = int(size)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX runs already, with as many as it has
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology={name}: JAX runs with {len(devices)} CPU devices already: start it with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
