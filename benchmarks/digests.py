"""What the digests of a checkpoint cost: the checksums, the training thread, a whole run.

python benchmarks/digests.py --mib 512
python benchmarks/digests.py --repeats 5      a run with digests compared with one without
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from clip_jax import config
from clip_jax.training import checkpointing, digests
from clip_jax.training import loop as train


def rate(act: Callable[[bytes], object], data: bytes) -> float:
    """GiB/s of one thread, the best of three runs."""
    best = 1e9
    for _ in range(3):
        began = time.perf_counter()
        act(data)
        best = min(best, time.perf_counter() - began)
    return len(data) / 2**30 / best


def seconds_of_steps(workdir: str, steps: int, every: int) -> float:
    """Seconds of a run on the embedded data from its second step to its end."""
    values = {
        **{"workdir": workdir, "steps": steps, "batch_size": 32, "optimizer.warmup_steps": 1},
        **{"checkpoint.every": every, "checkpoint.keep": 1, "log.every": 1},
        **{"evaluate.sets": {}, "log.tensorboard": False, "dtype": "float32"},
    }
    c, _ = config.load("configs/quickstart.py", [f"{key}={v}" for key, v in values.items()])
    began = [0.0]
    log = train.Loop._log

    def timed(loop: train.Loop, step: int, *rest: Any) -> None:
        log(loop, step, *rest)
        began[0] = began[0] or time.perf_counter()

    with mock.patch.object(train.Loop, "_log", timed), contextlib.redirect_stdout(io.StringIO()):
        train.train(c)  # its end waits for the last checkpoint
    return time.perf_counter() - began[0]


def compare_runs(repeats: int, steps: int, every: int) -> None:
    """Prints the time with digests over the time without, alternating in changing order."""
    ratios = []
    for repeat in range(repeats + 1):
        seconds = {}
        for with_digests in (True, False) if repeat % 2 else (False, True):
            off = contextlib.nullcontext() if with_digests else no_digests()
            with tempfile.TemporaryDirectory() as folder, off:
                seconds[with_digests] = seconds_of_steps(f"{folder}/run", steps, every)
        if repeat:  # the first fills the caches
            ratios.append(seconds[True] / seconds[False])
            print(f"{seconds[True]:.2f} s with, {seconds[False]:.2f} s without: {ratios[-1]:.3f}")
    print(f"{steps} steps, a checkpoint every {every}: median {statistics.median(ratios):.3f}")


def no_digests() -> contextlib.AbstractContextManager[Any]:
    """A context in which checkpoints are written without digests."""
    return mock.patch.object(digests, "write", lambda folder, step: None)


def main() -> None:
    """Prints the figures."""
    p = argparse.ArgumentParser()
    p.add_argument("--mib", type=int, default=512)
    p.add_argument("--repeats", type=int, default=0)
    p.add_argument("--steps", type=int, default=21)
    p.add_argument("--every", type=int, default=5)
    args = p.parse_args()
    if args.repeats:
        compare_runs(args.repeats, args.steps, args.every)
        return
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
        checkpoints = checkpointing.Checkpoints(folder)
        began = time.perf_counter()
        checkpoints.save(1, state, {}, {}, force=True)
        print(f"save returns after {time.perf_counter() - began:.2f} s")
        checkpoints.close()
        print(f"and is written after {time.perf_counter() - began:.2f} s")
        path = Path(folder) / "checkpoints" / "1"
        began = time.perf_counter()
        assert not digests.find_damage(path, 1)
        print(f"checked in {time.perf_counter() - began:.2f} s")

        work = threading.Thread(target=digests.write, args=(path, 1))
        work.start()
        began, longest, steps = time.perf_counter(), 0.0, 0
        while work.is_alive():
            step_start = time.perf_counter()
            step(x)  # the training thread only dispatches
            longest, steps = max(longest, time.perf_counter() - step_start), steps + 1
            jax.block_until_ready(x)
            time.sleep(0.001)
        spent = time.perf_counter() - began
        print(f"written in {spent:.2f} s; the longest of {steps} dispatches took {longest:.4f} s")


if __name__ == "__main__":
    main()
