"""Tests the names of topologies and their devices."""

from __future__ import annotations

import pytest

from clip_jax.distributed.sharding import AXES, make_mesh
from clip_jax.errors import UserError
from clip_jax.plan import topology
from clip_jax.plan.topology import find_topology, is_split


@pytest.mark.parametrize(
    ("name", "canonical_name", "devices", "chips"),
    [
        ("v5e:2x2", "v5e:2x2", 4, 4),
        ("v5e:1x1", "v5e:1x1", 1, 1),
        ("V5E=16x16", "v5e:16x16", 256, 256),
        ("v5e-256", "v5e:16x16", 256, 256),
        ("v5litepod-8", "v5e:2x4", 8, 8),
        ("v4:2x2x1", "v4:2x2x1", 4, 4),
        ("v4-16", "v4:2x2x2", 8, 8),
        ("v5p:4x4x4", "v5p:4x4x4", 64, 64),
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("v6e:16x16", "v6e:16x16", 256, 256),
        ("v3:2x2", "v3:2x2", 8, 4),
    ],
)
def test_a_slice_has_its_devices(name, canonical_name, devices, chips):
    pytest.importorskip("libtpu")
    slice_ = find_topology(name)
    assert (slice_.name, len(slice_.devices), slice_.chips) == (canonical_name, devices, chips)
    assert slice_.devices[0].num_cores == (2 if canonical_name.startswith(("v4", "v5p")) else 1)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_the_cores_of_a_split_chip_are_neighbours_in_a_mesh(sizes):
    pytest.importorskip("libtpu")
    slice_ = find_topology("v5p:2x2x1x2")
    assert (slice_.name, len(slice_.devices), slice_.chips) == ("v5p:2x2x1x2", 8, 4)
    assert is_split(slice_.name) and not is_split("v5p:2x2x1") and not is_split("v5e:2x2")
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), slice_.devices)
    assert dict(mesh.shape) == dict(zip(AXES, sizes, strict=True))
    assert len(set(mesh.devices.flat)) == 8
    pairs = mesh.devices.reshape(4, 2)
    assert all(first.coords == second.coords for first, second in pairs)
    assert [[device.core_on_chip for device in pair] for pair in pairs] == [[0, 1]] * 4


def test_cpu_devices_are_devices_of_this_machine():
    cpus = find_topology("cpu:4")
    assert len(cpus.devices) == 4 and cpus.chips is None
    assert {device.platform for device in cpus.devices} == {"cpu"}


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e", "v5e:", "bogus:2x2", "v5e:2x2x2", "v5p:2x2", "v5e:0x4", "v5e:axb", "v4-1"),
        *("2x2", "v9-8", "cpu", "cpu:0", "cpu:x", "v5e:32x32", "v5e:-2x2", "v5e:2x2:1"),
        *("v5p:2x2x1x1", "v5p:2x2x1x3", "v5e:2x2x1x2", "v5e:2x2x2x2"),
    ],
)
def test_the_error_for_an_unknown_topology_names_known_ones(name):
    with pytest.raises(UserError) as error:
        find_topology(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert any(known in str(error.value) for known in ("v5e:16x16", "cpu:8", "256 chips"))


def test_more_cpu_devices_than_jax_has_is_a_user_error():
    with pytest.raises(UserError, match=r"runs with 8 CPU devices.*device_count=64"):
        find_topology("cpu:64")


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[plan\]'"):
        find_topology("v6e:2x4")
