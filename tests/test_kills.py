"""A few of the kills of `kills`, which makes any number."""

import pytest

import kills


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_any_phase_ends_as_one_that_was_not(tmp_path, processes):
    assert kills.kill(tmp_path, 3, processes, seed=7)[0] >= 3
