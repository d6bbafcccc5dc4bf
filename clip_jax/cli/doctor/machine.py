"""Reads the machine: processor, memory, disks, settings, and the accelerators' drivers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clip_jax.cli.doctor.facts import Cpu, Folder, Nvidia, NvidiaGpu, Tpu
from clip_jax.io import files

_SMI_TIMEOUT = 5.0
# The names of features in /proc/cpuinfo: flags of x86, Features of ARM.
_FEATURES = (
    ("AMX", {"amx_tile", "amx_bf16"}),
    ("AVX-512 bf16", {"avx512_bf16"}),
    ("AVX-512", {"avx512f"}),
    ("AVX2", {"avx2"}),
    ("SVE", {"sve"}),
    ("NEON", {"asimd"}),
    ("bf16", {"bf16"}),
)
_VARIABLES = re.compile(
    "(JAX|XLA|LIBTPU|TPU|NCCL)_.*|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|LD_LIBRARY_PATH|"
    "GLIBC_TUNABLES"
)
# TPUs among the PCI devices of Google: v2 and v3, v4, v5p, v5e, v6e, 7x (`jax.hardware_utils`).
_GOOGLE = "0x1ae0"
_TPU_IDS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def _read(path: str | Path) -> str:
    """Returns the text of a file of the kernel; empty if there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def cpu() -> Cpu:
    """Returns the processor, and how much of it this process may use."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)", info, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", info, re.M)
    name, words = model[1] if model else "", set(flags[1].split() if flags else ())
    if sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
        words = {"asimd"} if platform.machine() == "arm64" else set()
    has_affinity = hasattr(os, "sched_getaffinity")
    quota = re.fullmatch(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    return Cpu(
        model=name or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1,
        quota=int(quota[1]) / int(quota[2]) if quota else None,
        features=tuple(name for name, needed in _FEATURES if needed <= words),
        load=os.getloadavg()[0],
    )


def memory() -> tuple[int, int]:
    """Returns the bytes of memory that this process may use, and those that are free."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.M)
    free = int(available[1]) * 1024 if available else total
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, max(0, int(limit) - int(used)))
    return total, free


def shared_memory() -> int | None:
    """Returns the size of /dev/shm in bytes, or None if there is none."""
    return shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None


def open_files() -> int:
    """Returns how many files this process may have open."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def huge_pages() -> str:
    """Returns the kernel's setting of transparent huge pages: always, madvise, never or empty."""
    chosen = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return chosen[1] if chosen else ""


def environment() -> dict[str, str]:
    """Returns the environment variables that JAX, its compiler and its drivers read.

    One is left out that `common.run_and_exit` sets.
    """
    read = {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)}
    read.pop("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", None)
    return read


def folders() -> list[Folder]:
    """Returns the folders that runs write to: this one, the caches and temporary files."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(files.cache_folder("xla"))
    places = [("runs", "."), ("compiled programs", compiled), ("temporary files", _temporary())]
    return [_folder(use, path) for use, path in places if "://" not in path]


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written to any
        return os.environ.get("TMPDIR") or "/tmp"


def _folder(use: str, path: str) -> Folder:
    problem = ""
    try:
        files.try_writing(Path(path))
    except OSError as error:
        problem = str(error.strerror)
    free = shutil.disk_usage(files.nearest_folder(Path(path))).free
    return Folder(use, str(Path(path).absolute()), free, problem)


def _output(*command: str) -> str:
    """Returns what a command prints, its errors too; empty if it is missing or hangs."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SMI_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def nvidia() -> Nvidia | None:
    """Returns the NVIDIA driver as `nvidia-smi` and the kernel describe it; None without one."""
    fields = "name,driver_version,compute_cap,memory.total,memory.used"
    smi = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    output = _output(smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return parse_nvidia(
        output,
        kernel=_read("/proc/driver/nvidia/version"),
        models=[_read(path) for path in Path("/proc/driver/nvidia/gpus").glob("*/information")],
        is_reachable=any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))),
    )


def parse_nvidia(output: str, kernel: str, models: list[str], is_reachable: bool) -> Nvidia | None:
    """Returns the driver that `nvidia-smi` and the kernel describe; None without one.

    Args:
      output: of `nvidia-smi`, see `nvidia`.
      kernel: the text of /proc/driver/nvidia/version.
      models: the texts of /proc/driver/nvidia/gpus/*/information.
      is_reachable: whether there are device files.
    """
    rows = [line.split(", ") for line in output.splitlines()]
    gpus = [
        NvidiaGpu(row[0], _number(row[2]), _mib(row[3]), _mib(row[4]))
        for row in rows
        if len(row) == 5
    ]
    if gpus:
        return Nvidia(rows[0][1], gpus, is_reachable)
    problem = "" if "No devices were found" in output else (output.splitlines() or [""])[0]
    named = [match[1] for text in models if (match := re.search(r"Model:\s*(.+)", text))]
    if not kernel and not problem:
        return None
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", kernel)
    return Nvidia(version[0] if version else "", list(map(NvidiaGpu, named)), is_reachable, problem)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _mib(text: str) -> int | None:
    number = _number(text)
    return None if number is None else int(number * 2**20)


def tpu() -> Tpu:
    """Returns the TPU chips among the PCI devices."""
    chips = sum(
        _read(vendor) == _GOOGLE and _read(vendor.with_name("device")) in _TPU_IDS
        for vendor in Path("/sys/bus/pci/devices").glob("*/vendor")
    )
    opened = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return Tpu(chips, any(os.access(path, os.R_OK | os.W_OK) for path in opened))
