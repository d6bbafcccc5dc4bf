"""Tests which devices take part in a collective, and what it sends between hosts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.plan.collectives import Collective, group_and_hosts, parse_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        (
            "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups={{0,2},{1,3}}, use_global_device_ids=true", [[0, 2], [1, 3]]),
        ("replica_groups={}", None),
        ("replica_groups={{0,1},{2}}", None),
        ("replica_groups=mesh['a'=4] {'unknown'}", None),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", None),
    ],
)
def test_groups_of_devices(text, groups):
    parsed = parse_groups(f"%x), channel_id=1, {text}, dimensions={{0}}")
    assert (None if parsed is None else parsed.tolist()) == groups


@given(sides=st.tuples(*[st.integers(1, 4)] * 3), along=st.permutations("abc"), data=st.data())
def test_groups_along_the_axes_of_a_mesh(sides, along, data):
    """Devices of a group have the same place along all other axes."""
    along = along[: data.draw(st.integers(1, 3))]
    axes = ",".join(f"'{name}'={size}" for name, size in zip("abc", sides, strict=True))
    text = f"replica_groups=mesh[{axes}] {{{','.join(map(repr, along))}}}"
    places = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=1)
    others = ["abc".index(name) for name in "abc" if name not in along]
    groups = parse_groups(text)
    assert sorted(groups.ravel()) == list(range(np.prod(sides)))
    for group in groups:
        assert len(np.unique(places[group][:, others], axis=0)) == 1
    assert groups.shape[1] == np.prod([sides["abc".index(name)] for name in along])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", (2, 1)),
        ("replica_groups={{0,2},{1,3}}", (2, 2)),
        ("replica_groups={}", (4, 2)),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", (2, 2)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", (2, 1)),  # some stay in their host
        ("source_target_pairs={}", (2, 1)),
    ],
)
def test_hosts_of_a_group(text, expected):
    assert group_and_hosts(f"%x), {text}, metadata={{}}", hosts=[0, 0, 1, 1]) == expected


def test_the_bytes_between_hosts_are_those_of_a_hierarchical_collective():
    """Each host receives what the other hosts have once, over the network cards of its GPUs."""
    gather = Collective("all-gather", 3200, 10, group_size=32, hosts=4)
    assert gather.bytes_between_hosts == 3200 * 10 * 3 / 4 / 8
    assert Collective("all-reduce", 3200, 1, 32, 4).bytes_between_hosts == 2 * 3200 * 3 / 4 / 8
    scatter = Collective("reduce-scatter", 100, 1, 32, 4)
    assert scatter.bytes_between_hosts == 3200 * 3 / 4 / 8
    assert Collective("collective-permute", 100, 3, 2, 2).bytes_between_hosts == 300
    for inside in (Collective("all-gather", 3200, 1, 8, 1), Collective("all-gather", 1, 1, 8)):
        assert inside.bytes_between_hosts == 0
