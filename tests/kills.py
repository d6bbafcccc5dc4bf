"""Kills a run again and again, in any phase, and asks whether it ends as one that nobody killed.

python tests/kills.py --count 100 --processes 2 --seed 1
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np

import runs


def killed_once(argv: list[str], processes: int, delay: float) -> bool:
    """Starts the command and kills one of its processes after a delay; whether it had not ended."""
    killed = False

    def meanwhile(started: list) -> None:
        nonlocal killed
        end = time.monotonic() + delay
        while time.monotonic() < end and all(p.poll() is None for p in started):
            time.sleep(0.005)
        killed = all(p.poll() is None for p in started)
        for process in started:
            process.kill()

    runs.together(argv, processes, meanwhile=meanwhile)
    return killed


def same(first: Path, second: Path) -> bool:
    """Whether two runs have the same metrics and parameters, to the bit."""
    ours, theirs = runs.parameters(first), runs.parameters(second)
    return runs.values(first) == runs.values(second) and all(
        np.array_equal(value, theirs[name]) for name, value in ours.items()
    )


def kill(folder: Path, count: int, processes: int, seed: int) -> int:
    """Kills, over as many runs as it takes; returns how many kills it was."""
    rng, kills, number = random.Random(seed), 0, 0
    config = runs.small_run(folder, 20)
    uninterrupted = folder / "whole"
    began = time.monotonic()
    for done in runs.together(runs.command(config, uninterrupted), processes):
        assert done.returncode == 0, done.stderr
    longest = time.monotonic() - began
    while kills < count:
        number += 1
        argv = runs.command(config, folder / f"run{number}")
        for _ in range(rng.randint(1, 6)):
            kills += killed_once(argv, processes, rng.uniform(0.2, 1.1) * longest)
        for done in runs.together(argv, processes):
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert same(folder / f"run{number}", uninterrupted), f"run{number}, seed {seed}"
        print(f"{kills} kills, {number} runs: equal to the bit", flush=True)
    return kills


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--processes", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kill(Path(folder), args.count, args.processes, args.seed)


if __name__ == "__main__":
    main()
