"""The names of topologies, and what each comes to."""

from __future__ import annotations

import pytest

from clip_jax.errors import UserError
from clip_jax.plan import topology


@pytest.mark.parametrize(
    ("name", "called", "devices", "chips"),
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
def test_a_slice_has_its_devices(name, called, devices, chips):
    pytest.importorskip("libtpu")
    found = topology.find(name)
    assert (found.name, len(found.devices), found.chips) == (called, devices, chips)
    assert found.devices[0].num_cores == (2 if called.startswith(("v4", "v5p")) else 1)


def test_cpu_devices_are_this_machines():
    found = topology.find("cpu:4")
    assert len(found.devices) == 4 and found.chips is None
    assert {device.platform for device in found.devices} == {"cpu"}


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e", "v5e:", "bogus:2x2", "v5e:2x2x2", "v5p:2x2", "v5e:0x4", "v5e:axb", "v4-1"),
        *("2x2", "v9-8", "cpu", "cpu:0", "cpu:x", "v5e:32x32", "v5e:-2x2", "v5e:2x2:1"),
    ],
)
def test_what_is_no_topology_is_named_with_those_that_are(name):
    with pytest.raises(UserError) as error:
        topology.find(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert any(known in str(error.value) for known in ("v5e:16x16", "cpu:8", "256 chips"))


def test_more_cpu_devices_than_jax_runs_with():
    with pytest.raises(UserError, match=r"8 CPU devices already.*device_count=64"):
        topology.find("cpu:64")


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[plan\]'"):
        topology.find("v6e:2x4")
