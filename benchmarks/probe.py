"""A linear probe over the paper's grid of λ, compared with scikit-learn, alternating.

    pip install scikit-learn && python benchmarks/probe.py

The features have unit norm: overlapping anisotropic clusters around a common mean. scikit-learn
fits `LogisticRegression(C=1/λ, max_iter=1000)` for one λ after the other, also in float32, with its
products on all cores, or with `--jobs` several λ at a time in processes of one core each. It fits
every `--every`-th λ of the grid; the others are assumed to take as long as their neighbours.
clip_jax fits the whole grid in a fresh process with nothing compiled, so its time includes
compilation; a second fit gives the time without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import fresh
import numpy as np

SIDES = ("clip_jax", "sklearn")


def clusters(args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Features and classes for training and for testing."""
    rng = np.random.default_rng(0)
    scale = (1 + np.arange(args.width)) ** -0.5
    turn = np.linalg.qr(rng.normal(size=(args.width, args.width)))[0]
    mean = rng.normal(size=args.width)
    mean /= np.linalg.norm(mean)
    centres = rng.normal(size=(args.classes, 3, args.width)) * scale
    arrays = []
    for rows in (args.rows, 5000):
        target, part = rng.integers(0, args.classes, rows), rng.integers(0, 3, rows)
        noise = 3 * args.spread * scale * rng.normal(size=(rows, args.width))
        features = (centres[target, part] + noise) @ turn
        features = features / np.sqrt((features**2).sum(1).mean()) + mean
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        arrays += [features.astype(np.float32), target]
    return tuple(arrays)


def ours(data: tuple[np.ndarray, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a first and of a second fit, and the test accuracy for each λ."""
    from clip_jax.evaluation.metrics import linear_probe, logistic

    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        fitted = logistic.fit(data[0], data[1], args.classes, linear_probe.grid())
        seconds.append(time.perf_counter() - began)
    right = [linear_probe.accuracy(logistic.scores(data[2], fitted, i), data[3]) for i in range(97)]
    return {"seconds": seconds[0], "again": seconds[1], "accuracy": right}


def fit_one(data: tuple[np.ndarray, ...], strength: float, tolerance: float) -> tuple[float, float]:
    """Seconds and test accuracy of scikit-learn for one λ."""
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")
    began = time.perf_counter()
    model = LogisticRegression(C=1 / strength, max_iter=1000, tol=tolerance).fit(*data[:2])
    return time.perf_counter() - began, float(model.score(*data[2:]))


def _one_core(*task: Any) -> tuple[float, float]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return fit_one(*task)


def theirs(data: tuple[np.ndarray, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the whole grid, and the test accuracy for every λ that was fitted."""
    numbers = range(0, 97, args.every)
    strengths = [10.0 ** (i / 8 - 6) for i in numbers]
    tasks = [(data, strength, args.tolerance) for strength in strengths]
    fit_one(data, 1e6, 1e-4)  # does not count imports and the set-up of a first call
    if args.jobs > 1:
        with ProcessPoolExecutor(args.jobs) as pool:
            list(pool.map(_one_core, *zip(*[(data, 1e6, 1e-4)] * args.jobs, strict=True)))
            began = time.perf_counter()
            results = list(pool.map(_one_core, *zip(*tasks, strict=True)))
            fitted = time.perf_counter() - began
    else:
        results = [fit_one(*task) for task in tasks]
        fitted = sum(seconds for seconds, _ in results)
    sweep_seconds = np.interp(range(97), numbers, [seconds for seconds, _ in results]).sum()
    share = sweep_seconds / sum(seconds for seconds, _ in results)
    return {
        "seconds": fitted * share,
        "accuracy": {i: a for i, (_, a) in zip(numbers, results, strict=True)},
    }


def main() -> None:
    """Alternates the sides and prints times, the ratio, and where accuracies differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--spread", type=float, default=1.5, help="of the classes: how they overlap"
    )
    parser.add_argument("--every", type=int, default=16, help="fit every so many λ in scikit-learn")
    parser.add_argument("--jobs", type=int, default=1, help="processes of scikit-learn")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="scikit-learn's tol")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side = ours if args.worker == "clip_jax" else theirs
        return print(json.dumps(side(clusters(args), args)))
    ratios = []
    for _ in range(args.repeats):
        mine, other = (fresh.measure(side) for side in SIDES)
        ratios.append(other["seconds"] / mine["seconds"])
        print(
            f"clip_jax {mine['seconds']:.1f} s, compiled before {mine['again']:.1f} s; "
            f"scikit-learn {other['seconds']:.1f} s: clip_jax is {ratios[-1]:.1f} times as fast",
            flush=True,
        )
    print(f"{'λ':>8} {'clip_jax':>9} {'scikit-learn':>13}")
    for i, right in other["accuracy"].items():
        print(f"{10 ** (int(i) / 8 - 6):8.0e} {mine['accuracy'][int(i)]:9.2%} {right:13.2%}")
    gaps = [abs(mine["accuracy"][int(i)] - right) for i, right in other["accuracy"].items()]
    print(f"widest gap {max(gaps):.2%}; median: {statistics.median(ratios):.1f} times as fast")


if __name__ == "__main__":
    main()
