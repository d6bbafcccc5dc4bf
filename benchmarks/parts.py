"""Where the time of a config goes: its data alone, and its step alone in each dtype.

    python benchmarks/parts.py --config configs/quickstart.py

Data: batches are made in this thread, once the images are in memory. Step: the same batch is
repeated and the dtypes alternate, so that a machine that slows down slows all of them. Nothing is
written.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from clip_jax.cli.allocator import tune_allocator


def made_in(run: Any, seconds: float) -> float:
    """Rows per second of a run's data."""
    from clip_jax.training.trainer import Trainer

    data = Trainer(run).data()
    batches, size = data.dataset, run.config.batch_size
    epoch = -(-len(run.data) // size)
    for step in range(epoch):
        batches[step]
    began, step = time.perf_counter(), epoch
    while time.perf_counter() - began < seconds:
        batches[step]
        step += 1
    return (step - epoch) * size / (time.perf_counter() - began)


def step_of(run: Any, dtype: str) -> Callable[[], float]:
    """A function that does one step of a run in a dtype and returns milliseconds."""
    import jax

    from clip_jax.training.trainer import Trainer

    config = dataclasses.replace(run.config, dtype=dtype)
    trainer = Trainer(dataclasses.replace(run, config=config))
    batch = trainer.place(next(trainer.data()))
    compiled = trainer.compile(batch["tokens"].shape[1])
    state = trainer.fresh()

    def run_step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, out = compiled(state, batch)
        jax.block_until_ready(out)
        return 1e3 * (time.perf_counter() - began)

    run_step()
    return run_step


def main() -> None:
    """Prints rows per second, and the median step time of each dtype."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--steps", type=int, default=20, help="counted steps of each dtype")
    args = parser.parse_args()

    from clip_jax import config
    from clip_jax.models.model_config import DTYPES
    from clip_jax.training.run import prepare

    run = prepare(config.load(args.config)[0])
    print(f"data alone: {made_in(run, 5):,.0f} rows/s in one thread")
    steps = {dtype: step_of(run, dtype) for dtype in DTYPES}
    spent: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for _ in range(args.steps):
        for dtype, run_step in steps.items():
            spent[dtype].append(run_step())
    for dtype, times in spent.items():
        print(f"step, {dtype}: median {statistics.median(times):.0f} ms, best {min(times):.0f} ms")


if __name__ == "__main__":
    tune_allocator()
    main()
