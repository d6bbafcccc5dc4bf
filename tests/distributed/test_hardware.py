"""Peaks of accelerators by the names that JAX has for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.distributed import hardware
from clip_jax.distributed.hardware import chip_named, chip_of, chip_of_device
from clip_jax.errors import UserError
from support import says

CHIPS = [chip for _, chip in hardware._CHIPS]

KINDS = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "7x",
    "Tesla V100-SXM2-16GB": "V100-SXM-16GB",
    "Tesla V100-PCIE-32GB": "V100-PCIE-32GB",
    "Tesla V100S-PCIE-32GB": "V100S-32GB",
    "Tesla T4": "T4",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-PCIE-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100 80GB PCIe": "A100-80GB",
    "NVIDIA L4": "L4",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA GeForce RTX 3090": "RTX-3090",
    "NVIDIA GeForce RTX 4090": "RTX-4090",
    "NVIDIA GeForce RTX 5090": "RTX-5090",
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_a_device_is_known_by_its_kind(kind: str, name: str) -> None:
    assert chip_of(kind) == chip_named(name)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "cpu",
        "TPU v9",
        "TPU v4 lite",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L400",
        "v5e",
    ],
)
def test_unknown_devices_have_no_figures(kind: str) -> None:
    assert chip_of(kind) is None
    assert chip_of(kind, 2) is None


# Matrix units of a device, and the multipliers of each.
UNITS = {
    "v2": (1, 128**2),
    "v3": (2, 128**2),
    "v4": (8, 128**2),
    "v5e": (4, 128**2),
    "v5p": (8, 128**2),
    "v6e": (4, 256**2),
}


@pytest.mark.parametrize("name", UNITS)
def test_the_clock_of_a_tpu_makes_its_peak(name: str) -> None:
    chip, (units, multipliers) = chip_named(name), UNITS[name]
    assert chip.clock is not None
    assert 2 * units * multipliers * chip.clock * 1e9 == pytest.approx(chip.peak, rel=3e-3)


def test_a_chip_may_be_split_into_its_cores() -> None:
    chip, core = chip_of("TPU v4", 2), chip_of("TPU v4", 1)
    assert chip == chip_named("v4")
    assert (core.peak, core.hbm, core.interconnect) == (137.5e12, 16 * 2**30, 1.35e11)
    assert (core.name, core.clock, core.cores) == ("v4", chip.clock, 1)
    assert core.of_cores(2) == chip
    assert chip_of("TPU7x", 1) == chip_named("7x")


def test_devices() -> None:
    def device(**attributes: Any) -> Any:
        return SimpleNamespace(**attributes)

    assert chip_of_device(jax.devices()[0]) is None
    split = device(device_kind="TPU v5p", platform="tpu", num_cores=1)
    assert chip_of_device(split) == chip_named("v5p").of_cores(1)
    assert chip_of_device(device(device_kind="Tesla T4", platform="gpu")) == chip_named("T4")


def test_the_table_is_sound() -> None:
    names = [chip.name.lower() for chip in CHIPS]
    assert len(set(names)) == len(names)
    for chip in CHIPS:
        assert 2e13 <= chip.peak < 1e16
        assert 8 * 2**30 <= chip.hbm < 2**38
        assert chip_named(chip.name.upper()) == chip


@given(st.text(max_size=40))
def test_a_strange_name_is_a_clear_line(name: str) -> None:
    if name.lower() not in {chip.name.lower() for chip in CHIPS}:
        with pytest.raises(UserError) as error:
            chip_named(name)
        assert says(error.value, "unknown chip", "v5e", "RTX-5090")
