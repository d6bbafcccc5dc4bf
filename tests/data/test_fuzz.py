"""No bytes give anything but a picture, a pair or one clear line; what once did is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import damage
import fuzz

TESTS = Path(__file__).parent.parent
# decode turns these off for a program; pytest turns them on again
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def fuzzed(folder: Path, kind: str, count: int, seed: int) -> None:
    """Runs the fuzzer as a process of its own: a crash or endless memory shows, too."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    done = subprocess.run(
        [sys.executable, TESTS / "fuzz.py", kind, f"--count={count}", f"--seed={seed}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"{count:,} {kind}" in done.stdout and ", 0 broke" in done.stdout
    # damage that is refused, and damage that is survived
    assert "'refused'" in done.stdout and ("'picture'" in done.stdout or "'pairs'" in done.stdout)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("kind", "count"), [("pictures", 400), ("tars", 400)])
def test_damage(tmp_path: Path, kind: str, count: int) -> None:
    fuzzed(tmp_path, kind, count, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("pictures", 10_000), ("tars", 10_000)])
def test_much_damage(tmp_path: Path, kind: str, count: int) -> None:
    fuzzed(tmp_path, kind, count, 1)


@pytest.mark.parametrize("data", damage.kept("pictures-*.bin"))
def test_pictures_that_once_broke_something(data: bytes) -> None:
    assert fuzz.decodes(data)


@pytest.mark.parametrize("data", damage.kept("tars-*.bin"))
def test_tars_that_once_broke_something(data: bytes) -> None:
    assert fuzz.reads(data)
