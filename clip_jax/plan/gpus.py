"""The GPUs that a step is compiled for, as XLA's compiler describes them.

The figures of A100, H100, H200, B200 and RTX A6000 are those of XLA's own target descriptions
(xla/backends/gpu/target_config/specs, Apache 2.0). Those of others are from NVIDIA's architecture
whitepapers and the CUDA programming guide ("Technical specifications per compute capability").
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from clip_jax.errors import UserError

# The share of a GPU's memory that JAX reserves when it starts, unless this variable sets another.
MEMORY_FRACTION = 0.75
MEMORY_FRACTION_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"

# Nothing can be timed without a GPU, so nothing is tuned. Products go to cuBLAS: without tuning,
# XLA finds no tile for some products that it would write in Triton.
COMPILER_OPTIONS: dict[str, str | bool | int] = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
}


_SKIP_CHECK = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as XLA's compiler sees it.

    Attributes:
      kind: its `jax.Device.device_kind`, which names its peak speed in `hardware.chip_of`.
      capability: the CUDA compute capability.
      cores: the number of streaming multiprocessors.
      clock: GHz, boosted.
      memory: the bytes that CUDA reports.
      l2: bytes of the L2 cache.
      shared: bytes of shared memory and L1 cache of a core; programs can use all but 1 KiB of it.
      threads: the largest number of threads on a core.
      fpus: units for float32 of a core.
      network: bytes/s that a GPU sends to other hosts in NVIDIA's DGX of that generation, which has
        one network card for each GPU; None if there is none.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    clock: float
    memory: int
    l2: int
    shared: int
    threads: int = 1536
    fpus: int = 128
    network: float | None = None


_MIB = 2**20
_BIG = 2048  # threads on a core of a data centre's GPU
_SHARED = {(8, 0): 164, (8, 6): 100, (8, 9): 100, (9, 0): 228, (10, 0): 228, (12, 0): 100}  # KiB


def _gpu(
    kind: str,
    capability: tuple[int, int],
    cores: int,
    clock: float,
    memory: int,
    l2_mib: float,
    *,
    threads: int = 1536,
    fpus: int = 128,
    network: float | None = None,
) -> Gpu:
    """Returns a `Gpu` with the shared memory of its compute capability; `network` in Gbit/s."""
    return Gpu(
        kind,
        capability,
        cores,
        clock,
        memory,
        l2=int(l2_mib * _MIB),
        shared=_SHARED[capability] * 1024,
        threads=threads,
        fpus=fpus,
        network=None if network is None else network * 1e9 / 8,
    )


_A100: dict[str, Any] = dict(threads=_BIG, fpus=64, network=200)  # ConnectX-6
_H100: dict[str, Any] = dict(threads=_BIG, network=400)  # ConnectX-7

GPUS: dict[str, Gpu] = {
    "a100": _gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 85_100_068_864, 40, **_A100),
    "a100-40gb": _gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 42_331_013_120, 40, **_A100),
    "h100": _gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 84_942_979_072, 50, **_H100),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", (9, 0), 114, 1.755, 84_942_979_072, 50, threads=_BIG),
    "h200": _gpu("NVIDIA H200", (9, 0), 132, 1.98, 151_397_597_184, 50, **_H100),
    "b200": _gpu("NVIDIA B200", (10, 0), 148, 1.965, 191_514_411_008, 126.5, **_H100),
    "l4": _gpu("NVIDIA L4", (8, 9), 58, 2.04, 23_034 * _MIB, 48),
    "l40s": _gpu("NVIDIA L40S", (8, 9), 142, 2.52, 46_068 * _MIB, 96),
    "a10g": _gpu("NVIDIA A10G", (8, 6), 80, 1.71, 23_028 * _MIB, 6),
    "a40": _gpu("NVIDIA A40", (8, 6), 84, 1.74, 46_068 * _MIB, 6),
    "a6000": _gpu("NVIDIA RTX A6000", (8, 6), 84, 1.8, 51_041_271_808, 6),
    "rtx3070": _gpu("NVIDIA GeForce RTX 3070", (8, 6), 46, 1.725, 8_192 * _MIB, 4),
    "rtx3090": _gpu("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 24_576 * _MIB, 6),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 24_564 * _MIB, 72),
    "rtx5090": _gpu("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.407, 32_607 * _MIB, 96),
}


def target_config(gpu: Gpu, bandwidth: float) -> str:
    """Returns the description of a GPU as text of XLA's protocol buffer `GpuTargetConfigProto`.

    Args:
      gpu: the GPU.
      bandwidth: bytes/s of its memory.
    """
    major, minor = gpu.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared - 1024,
        "threads_per_core_limit": gpu.threads,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory,
        "dnn_version": '"9.10.0"',
        "runtime_version": '"12.8.0"',
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    return f"""gpu_device_info {{
{lines}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.kind}"
"""


def memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX reserves for programs.

    Raises:
      UserError: the variable `MEMORY_FRACTION_VARIABLE` is not a number in (0, 1].
    """
    text = os.environ.get(MEMORY_FRACTION_VARIABLE, "")
    try:
        fraction = float(text or MEMORY_FRACTION)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{MEMORY_FRACTION_VARIABLE}={text!r:.40} must be a number in (0, 1]")
    return fraction


def _plugins() -> list[str]:
    """Returns the modules of JAX's plugins for CUDA that are installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return []
    names = ["jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"]
    return [name for name in names if importlib.util.find_spec(name)]


def require_compiler(topology: str) -> None:
    """Raises a `UserError` if XLA's compiler for GPUs is not installed."""
    if not _plugins():
        raise UserError(
            f"--topology={topology} needs XLA's compiler for GPUs: pip install "
            "'clip_jax[plan-gpu]' (Linux; no GPU and no CUDA are needed)"
        )


def load_compiler() -> None:
    """Makes JAX load XLA's compiler for GPUs, also where there is no GPU.

    JAX's plugin refuses to load without CUDA's libraries, which only running needs.
    """
    before = os.environ.get(_SKIP_CHECK)
    os.environ[_SKIP_CHECK] = "1"
    try:
        with without_native_logs():
            import jax

            from clip_jax.distributed import jax_internals

            jax.devices("cpu")
            if not jax_internals.is_plugin_loaded("cuda"):
                importlib.import_module(_plugins()[0]).initialize()
    finally:
        if before is None:
            del os.environ[_SKIP_CHECK]
        else:
            os.environ[_SKIP_CHECK] = before


@contextlib.contextmanager
def without_native_logs() -> Iterator[None]:
    """Discards what libraries write to standard error: each logs that there is no CUDA driver."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
