"""What `doctor` knows about a machine. Everything that it reports and judges is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package that another package asks for.

    Attributes:
      by: the package that asks.
      extra: the extra of that package that asks; empty if it always does.
      wanted: such as `jax[tpu]>=0.10.2`.
      name: the name without extras and versions.
      installed: the version that is installed, or None.
      fits: whether that version is one that is wanted.
      is_met: whether it fits, and what its extras ask for is installed.
    """

    by: str
    extra: str
    wanted: str
    name: str
    installed: str | None
    fits: bool
    is_met: bool


@dataclasses.dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
      model: its name.
      cores: the cores that this process may run on.
      quota: the cores' worth of time that the container allows; None if it sets no limit.
      features: those of `AMX`, `AVX-512 bf16`, `AVX-512`, `AVX2`, `NEON`, `SVE` and `bf16` (of ARM)
        that it has.
      load: the processes that wanted a core in the last minute, on average.
    """

    model: str
    cores: int
    quota: float | None
    features: Sequence[str]
    load: float


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that runs write to.

    Attributes:
      use: what is written there.
      path: the folder.
      free: bytes.
      problem: why nothing can be written there; empty if it can.
    """

    use: str
    path: str
    free: int
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class NvidiaGpu:
    """A GPU as the driver sees it; None stands for what the driver does not tell.

    Attributes:
      name: such as `NVIDIA L4`.
      capability: the compute capability, such as 8.9.
      memory: bytes.
      used: bytes of memory in use.
    """

    name: str
    capability: float | None = None
    memory: int | None = None
    used: int | None = None


@dataclasses.dataclass(frozen=True)
class Nvidia:
    """The NVIDIA driver of this machine.

    Attributes:
      version: such as `580.65.06`; empty if it is unknown.
      gpus: the GPUs.
      is_reachable: whether this process sees their device files; a container may not.
      problem: what `nvidia-smi` says when it fails.
    """

    version: str
    gpus: Sequence[NvidiaGpu]
    is_reachable: bool = True
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """The TPU chips that are plugged into this machine.

    Attributes:
      chips: their number.
      is_reachable: whether this process may open their device files.
    """

    chips: int
    is_reachable: bool = True


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that JAX uses.

    Attributes:
      kind: such as `TPU v5 lite` or `NVIDIA L4`; `cpu` for CPUs.
      platform: cpu, gpu or tpu.
      memory: the bytes that JAX may use, or None if it does not tell.
      used: the bytes in use.
      chip: the name of the chip; empty if its peak is unknown.
      peak: FLOP/s of bfloat16 products; 0 if it is unknown.
    """

    kind: str
    platform: str
    memory: int | None = None
    used: int | None = None
    chip: str = ""
    peak: float = 0.0


@dataclasses.dataclass(frozen=True)
class DeviceQuery:
    """The answer of a process that starts JAX.

    Attributes:
      devices: the local devices; none if JAX does not start.
      hosts: the number of processes that share the devices.
      seconds: how long the process took.
      timed_out: whether it was ended because it did not answer.
      errors: lines of its errors, the most telling last.
    """

    devices: Sequence[Device]
    hosts: int = 1
    seconds: float = 0.0
    timed_out: bool = False
    errors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ConfigFacts:
    """What a config asks of the machine.

    Attributes:
      workers: processes that read data.
      cache_mib: MiB of decoded images that are kept in memory.
    """

    workers: int
    cache_mib: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """A machine and what is installed on it.

    Attributes:
      python: the version of Python.
      slow_python: why this Python is slow, such as `a debug build`; empty if it is not.
      system: such as `Linux x86_64`.
      versions: the versions of the packages that matter, of those that are installed.
      requirements: what clip_jax, JAX and its plugins ask for on this machine.
      image_formats: those that Pillow cannot read.
      cpu: the processor.
      memory: bytes that this process may use.
      available: bytes that are free now.
      shared_memory: bytes of /dev/shm; None if there is none.
      open_files: the limit of open files.
      huge_pages: the kernel's setting: always, madvise or never; empty if it has none.
      folders: those that runs write to.
      environment: the environment variables that JAX, its compiler and its drivers read.
      nvidia: the NVIDIA driver, if there is one.
      tpu: the TPU chips.
      query: the devices that JAX uses.
      config: of the config that the user names.
    """

    python: str
    slow_python: str
    system: str
    versions: Mapping[str, str]
    requirements: Sequence[Requirement]
    image_formats: Sequence[str]
    cpu: Cpu
    memory: int
    available: int
    shared_memory: int | None
    open_files: int
    huge_pages: str
    folders: Sequence[Folder]
    environment: Mapping[str, str]
    nvidia: Nvidia | None
    tpu: Tpu
    query: DeviceQuery
    config: ConfigFacts | None = None

    def uses(self, platform: str) -> bool:
        """Returns whether JAX uses a device of the platform cpu, gpu or tpu."""
        return any(device.platform == platform for device in self.query.devices)
