"""Whole pipelines on hostile data, as `python tests/pipelines.py` runs many more of them."""

import subprocess
import sys

import pytest

import runs


@pytest.mark.parametrize(("count", "seed"), [(60, 0), pytest.param(400, 1, marks=pytest.mark.slow)])
def test_every_pair_is_used_or_counted(tmp_path, count, seed):
    script = str(runs.ROOT / "tests" / "pipelines.py")
    command = [sys.executable, script, f"--count={count}", f"--seed={seed}"]
    path = {"PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=runs.environment(**path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} pipelines" in done.stdout and ", 0 broke something" in done.stdout
    assert "trained" in done.stdout and "refused" in done.stdout
