"""What the digests of a checkpoint cost: the checksums, and the thread that trains.

python benchmarks/digests.py --mib 512
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from clip_jax import checkpoint, digests


def rate(act: Callable[[bytes], object], data: bytes) -> float:
    """GiB/s of one thread, the best of three."""
    best = 1e9
    for _ in range(3):
        began = time.perf_counter()
        act(data)
        best = min(best, time.perf_counter() - began)
    return len(data) / 2**30 / best


def main() -> None:
    """Prints the figures."""
    p = argparse.ArgumentParser()
    p.add_argument("--mib", type=int, default=512)
    args = p.parse_args()
    data = os.urandom(64 << 20)
    for name, act in (
        ("crc32", zlib.crc32),
        ("sha256", hashlib.sha256),
        ("blake2b", hashlib.blake2b),
    ):
        print(f"{name}: {rate(act, data):.2f} GiB/s")

    keys = jax.random.split(jax.random.key(0), 16)
    state = {f"{i}": jax.random.normal(k, (args.mib << 14,)) for i, k in enumerate(keys)}
    step = jax.jit(lambda x: x @ x)
    x = jax.block_until_ready(step(jnp.ones((1024, 1024))))
    with tempfile.TemporaryDirectory() as folder:
        kept = checkpoint.Checkpoints(folder)
        began = time.perf_counter()
        kept.save(1, state, {}, {}, force=True)
        print(f"save returns after {time.perf_counter() - began:.2f} s")
        kept.close()
        print(f"and is written after {time.perf_counter() - began:.2f} s")
        path = Path(folder) / "checkpoints" / "1"
        began = time.perf_counter()
        assert not digests.damage(path, 1)
        print(f"checked in {time.perf_counter() - began:.2f} s")

        work = threading.Thread(target=digests.write, args=(path, 1))
        work.start()
        began, longest, steps = time.perf_counter(), 0.0, 0
        while work.is_alive():
            asked = time.perf_counter()
            step(x)  # dispatch alone is what the training thread does
            longest, steps = max(longest, time.perf_counter() - asked), steps + 1
            jax.block_until_ready(x)
            time.sleep(0.001)
        spent = time.perf_counter() - began
        print(f"written in {spent:.2f} s; the longest of {steps} dispatches took {longest:.4f} s")


if __name__ == "__main__":
    main()
