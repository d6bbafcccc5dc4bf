"""Runs that an older version began: this one resumes them, and computes what that one did."""

from __future__ import annotations

import json
import tarfile

import pytest

import runs

# A run of commit d4f89c8, stopped at step 6 of 12; `expected.json` is what that commit logged next.
OLD_RUN = runs.ROOT / "tests" / "golden" / "old_runs" / "d4f89c8.tar.gz"


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_an_old_run_resumes_with_the_same_numbers(folder):
    workdir = folder / "run"
    done = runs.run(folder / "config.py", workdir)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 6 of 12" in done.stderr
    assert "checkpoints/6 is of an older version, without digests" in done.stderr
    logged = {line["step"]: line for line in runs.lines(workdir) if "loss" in line}
    expected = json.loads((folder / "expected.json").read_text())
    for step, metrics in expected.items():
        for name, value in metrics.items():
            assert logged[int(step)][name] == pytest.approx(value, rel=1e-5), (step, name)


def test_an_old_run_does_not_resume_with_another_config(folder):
    done = runs.run(folder / "config.py", folder / "run", "--config.optimizer.learning_rate=1e-4")
    assert done.returncode == 2
    assert "optimizer.learning_rate: 0.003 → 0.0001" in done.stderr
