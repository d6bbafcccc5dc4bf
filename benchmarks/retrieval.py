"""Exact recalls of a large retrieval set, both ways: seconds and peak memory.

    python benchmarks/retrieval.py --images 1000000 --texts 1000

The features are random, with unit norm; each text belongs to one image and is near it. `--plain`
also times the same products by NumPy in float32, block by block, without counting anything.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from clip_jax.evaluation.metrics import retrieval


def unit(x: np.ndarray) -> np.ndarray:
    """Normalises rows to unit norm in place."""
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def peak() -> float:
    """The peak memory of this process since the last call, in GB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return kilobytes * 1024 / 1e9


def main() -> None:
    """Makes the features, searches both ways, and prints one line for each."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--images", type=int, default=1_000_000)
    p.add_argument("--texts", type=int, default=1_000)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--plain", action="store_true")
    args = p.parse_args()
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((args.images, args.width), np.float32))
    owner = rng.permutation(args.images)[: args.texts]
    noise = rng.standard_normal((args.texts, args.width), np.float32) / args.width**0.5
    texts = unit(images[owner] + 4 * noise)
    del noise
    peak()
    before = peak()
    print(f"{args.images:,} pictures, {args.texts:,} texts, {args.width} wide: {before:.2f} GB")
    start = time.perf_counter()
    recalls = retrieval.recalls(images, texts, np.arange(args.images), owner)
    seconds = time.perf_counter() - start
    ways = {way: {k: round(s.value, 4) for k, s in getattr(recalls, way).items()} for way in _WAYS}
    print(f"clip_jax: {seconds:.1f} s, {peak() - before:.2f} GB more than the features; {ways}")
    if args.plain:
        start = time.perf_counter()
        for _ in _WAYS:
            for i in range(0, args.images, 4096):
                images[i : i + 4096] @ texts.T
        print(f"the products alone, twice, float32: {time.perf_counter() - start:.1f} s")


_WAYS = ("image_to_text", "text_to_image")

if __name__ == "__main__":
    main()
