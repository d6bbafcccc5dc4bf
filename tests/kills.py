"""Kills a run again and again, in any phase, and asks whether it ends as one that nobody killed.

python tests/kills.py --count 100 --processes 2 --seed 1

With `--store gs` or `s3` the runs are in a bucket of a server on this machine, see `buckets`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

import buckets
import numpy as np

import runs
from clip_jax.io.buckets import as_path


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


def kill(
    folder: Path, count: int, processes: int, seed: int, place: Path | None = None
) -> tuple[int, int]:
    """Kills, over as many runs as it takes; returns how many kills and runs it was.

    The runs are in `place`, if it is given, and the run that nobody kills is in `folder`.
    """
    rng, kills, number = random.Random(seed), 0, 0
    config = runs.small_run(folder, 20)
    uninterrupted, place = folder / "whole", place or folder
    began = time.monotonic()
    for done in runs.together(runs.command(config, uninterrupted), processes):
        assert done.returncode == 0, done.stderr
    longest = time.monotonic() - began
    while kills < count:
        number += 1
        argv = runs.command(config, place / f"run{number}")
        for _ in range(rng.randint(1, 6)):
            kills += killed_once(argv, processes, rng.uniform(0.2, 1.1) * longest)
        for done in runs.together(argv, processes):
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert same(place / f"run{number}", uninterrupted), f"run{number}, seed {seed}"
        print(f"{kills} kills, {number} runs: equal to the bit", flush=True)
    return kills, number


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--processes", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--store", choices=buckets.STORES)
    args = p.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = as_path(stack.enter_context(buckets.running(args.store))) if args.store else None
        kill(folder, args.count, args.processes, args.seed, place)


if __name__ == "__main__":
    main()
