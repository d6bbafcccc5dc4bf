"""Few-shot learning: all seeds at once compared with one seed after the other, alternating.

    python benchmarks/few_shot.py --classes 10 --grid

The data are 1, 2, 4, 8 and 16 rows of each class, three seeds, and unit-norm features in
overlapping clusters. With `--grid` 97 values of λ are tried on a validation split, otherwise one.
Each side is a fresh process with nothing compiled; a second run gives the time without compilation.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import fresh
import numpy as np

SIDES = ("at once", "seed by seed")


def clusters(rows: int, classes: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and their classes, with the same number of rows per class."""
    scale = (1 + np.arange(width, dtype=np.float32)) ** -0.5
    centres = np.random.default_rng(99).standard_normal((classes, width), np.float32) * scale
    rng = np.random.default_rng(seed)
    target = rng.permutation(rows) % classes
    features = centres[target] + 2 * scale * rng.standard_normal((rows, width), np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True), target


def run(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a first and of a second run, the accuracies, and the memory beyond the data."""
    from clip_jax.evaluation.metrics import few_shot

    if side == "seed by seed":
        few_shot.HELD_BYTES = 1
    train, test, validation = (
        clusters(rows, args.classes, args.width, seed)
        for seed, rows in enumerate((20 * args.classes, 2000, 2000))
    )
    more = {"validation": validation[0], "validation_target": validation[1]} if args.grid else {}
    seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        began = time.perf_counter()
        scores = few_shot.few_shot(*train, *test, args.classes, **more)
        seconds.append(time.perf_counter() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "mean": scores["mean"], "memory": memory}


def main() -> None:
    """Alternates the sides and prints times, memory, the ratio and the accuracies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--grid", action="store_true", help="97 λ rather than one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return print(json.dumps(run(args.worker, args)))
    ratios = []
    for _ in range(args.repeats):
        measured = [fresh.measure(side) for side in SIDES]
        for side, timing in zip(SIDES, measured, strict=True):
            first, again = timing["seconds"]
            print(
                f"{side}: {first:.2f} s, compiled before {again:.2f} s, {timing['memory']:.0f} MiB",
                flush=True,
            )
        ratios.append(
            [b / a for a, b in zip(*(timing["seconds"] for timing in measured), strict=True)]
        )
    for side, timing in zip(SIDES, measured, strict=True):
        print(f"{side}: accuracies " + ", ".join(f"{value:.2%}" for value in timing["mean"]))
    first, again = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"at once is {first:.2f} times as fast, compiled before {again:.2f} times (medians)")


if __name__ == "__main__":
    main()
