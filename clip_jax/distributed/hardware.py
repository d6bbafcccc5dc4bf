"""Accelerators: peak speed, memory and interconnect."""

from __future__ import annotations

import dataclasses
import re

import jax

from clip_jax.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak values of one `jax.Device`, which for TPU v2, v3 and 7x is a core: half a chip.

    Attributes:
      name: such as `v5e` or `A100-80GB`.
      peak: FLOP/s of dense bfloat16 products with float32 sums; of float16 on GPUs without bfloat16
        (V100, T4).
      hbm: the size of the memory in bytes.
      clock: GHz of a TPU's matrix units; None if it is not published.
      interconnect: bytes/s that it sends over all links to other TPUs, while it receives as many;
        None if it is unknown or not part of the chip (GPUs).
      cores: the number of TensorCores of a TPU in one device.
      bandwidth: bytes/s of a GPU's memory; None for TPUs.
      nvlink: bytes/s that a GPU sends to other GPUs of its host, while it receives as many; over
        PCIe if it has no NVLink; None for TPUs.
      flash: whether attention uses a kernel that JAX compiles for this GPU, see `models.attention`.
    """

    name: str
    peak: float
    hbm: int
    clock: float | None = None
    interconnect: float | None = None
    cores: int = 1
    bandwidth: float | None = None
    nvlink: float | None = None
    flash: bool = False

    def of_cores(self, cores: int) -> Chip:
        """Returns the values of a device of `cores` cores of the chip: v4 and v5p can be split."""
        share = cores / self.cores
        return dataclasses.replace(
            self,
            peak=self.peak * share,
            hbm=int(self.hbm * share),
            interconnect=None if self.interconnect is None else self.interconnect * share,
            cores=cores,
        )


def _gpu(
    name: str,
    tflops: float,
    gib: int,
    bandwidth: float,
    nvlink: float,
    *,
    flash: bool = False,
) -> Chip:
    """Returns a GPU; bandwidths are in GB/s."""
    return Chip(
        name,
        tflops * 1e12,
        gib * _GIB,
        bandwidth=bandwidth * 1e9,
        nvlink=nvlink * 1e9,
        flash=flash,
    )


_PCIE3, _PCIE4, _PCIE5 = 16, 32, 64  # GB/s of 16 lanes in each direction


# The chip of each `jax.Device.device_kind`, without the names of maker and brand. A part of a GPU
# (MIG) is none of these.
#
# TPUs: Google's "System architecture" pages (cloud.google.com/tpu/docs/v2 to /tpu7x). Clocks are
# those at which the matrix units reach that peak. Links: 496 and 656 Gbit/s each of v2 and v3
# (Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks"), 45 GB/s
# of v4 and v5e and 90 of v5p and v6e ("How to scale your model", part 2), times four in a plane and
# six in space.
# GPUs: NVIDIA's datasheets, halved where they assume sparsity: V100, T4, A10, A10G (by AWS), A40,
# A100, L4, L40, L40S, H100, H200, HGX B200, RTX A6000; of RTX cards the whitepapers of GA102, Ada
# and Blackwell, "BF16 with FP32 accumulate". NVLink is half of what they give for both directions.
_CHIPS: tuple[tuple[str, Chip], ...] = (
    ("TPU v2", Chip("v2", 23e12, 8 * _GIB, 0.7, 1.24e11)),
    ("TPU v3", Chip("v3", 61.5e12, 16 * _GIB, 0.94, 1.64e11)),
    ("TPU v4", Chip("v4", 275e12, 32 * _GIB, 1.05, 2.7e11, 2)),
    ("TPU v5( lite|e)", Chip("v5e", 197e12, 16 * _GIB, 1.5, 1.8e11)),
    ("TPU v5p?", Chip("v5p", 459e12, 95 * _GIB, 1.75, 5.4e11, 2)),
    ("TPU v6( lite|e)", Chip("v6e", 918e12, 32 * _GIB, 1.75, 3.6e11)),
    ("TPU7x?", Chip("7x", 1153.5e12, 96 * _GIB)),
    (r"V100-SXM\d-16GB", _gpu("V100-SXM-16GB", 125, 16, 900, 150)),
    (r"V100-SXM\d-32GB", _gpu("V100-SXM-32GB", 125, 32, 900, 150)),
    ("V100-PCIE-16GB", _gpu("V100-PCIE-16GB", 112, 16, 900, _PCIE3)),
    ("V100-PCIE-32GB", _gpu("V100-PCIE-32GB", 112, 32, 900, _PCIE3)),
    ("V100S-PCIE-32GB", _gpu("V100S-32GB", 130, 32, 1134, _PCIE3)),
    ("T4", _gpu("T4", 65, 16, 320, _PCIE3)),
    ("A10", _gpu("A10", 125, 24, 600, _PCIE4, flash=True)),
    ("A10G", _gpu("A10G", 70, 24, 600, _PCIE4)),
    ("A40", _gpu("A40", 149.7, 48, 696, _PCIE4)),
    ("A100-(SXM4|PCIE)-40GB", _gpu("A100-40GB", 312, 40, 1555, 300, flash=True)),
    ("A100-SXM4-80GB|A100 80GB PCIe", _gpu("A100-80GB", 312, 80, 2039, 300, flash=True)),
    ("L4", _gpu("L4", 121, 24, 300, _PCIE4, flash=True)),
    ("L40", _gpu("L40", 181, 48, 864, _PCIE4, flash=True)),
    ("L40S", _gpu("L40S", 362, 48, 864, _PCIE4)),
    ("H100 PCIe", _gpu("H100-PCIe", 756, 80, 2039, _PCIE5, flash=True)),
    ("H100 80GB HBM3", _gpu("H100-SXM", 989, 80, 3352, 450, flash=True)),
    ("H100 NVL", _gpu("H100-NVL", 835, 94, 3938, 300, flash=True)),
    ("H200", _gpu("H200", 989, 141, 4800, 450, flash=True)),
    ("B200", _gpu("B200", 2250, 180, 8000, 900, flash=True)),
    ("RTX A6000", _gpu("RTX-A6000", 154.8, 48, 768, _PCIE4)),
    ("RTX 3070", _gpu("RTX-3070", 40.6, 8, 448, _PCIE4)),
    ("RTX 3090", _gpu("RTX-3090", 71, 24, 936, _PCIE4)),
    ("RTX 4090", _gpu("RTX-4090", 165.2, 24, 1008, _PCIE4, flash=True)),
    ("RTX 5090", _gpu("RTX-5090", 209.5, 32, 1792, _PCIE5)),
)


def chip_of(device_kind: str, cores: int | None = None) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None if it is unknown, such as a CPU.

    Args:
      device_kind: such as `TPU v5 lite` or `NVIDIA A100-SXM4-80GB`.
      cores: `num_cores` of a TPU device; None: the usual number of its kind.
    """
    kind = re.sub(r"^(NVIDIA |Tesla |GeForce )*", "", device_kind)
    chip = next((chip for known, chip in _CHIPS if re.fullmatch(known, kind)), None)
    return chip.of_cores(cores) if chip and cores else chip


def chip_of_device(device: jax.Device) -> Chip | None:
    """Returns the chip of a device, see `chip_of`."""
    return chip_of(device.device_kind, device.num_cores if device.platform == "tpu" else None)


def chip_named(name: str) -> Chip:
    """Returns the chip with the given name; the case of letters does not matter.

    Raises:
      UserError: no chip has this name.
    """
    chips = {chip.name.lower(): chip for _, chip in _CHIPS}
    if name.lower() not in chips:
        known = ", ".join(chip.name for chip in chips.values())
        raise UserError(f"unknown chip {name!r}; known: {known}")
    return chips[name.lower()]
