"""Locked-image tuning with a ViT-B/32 image tower: a step on pictures and one on cached features.

    python benchmarks/cached_features.py                  # text tower of configs/quickstart.py
    python benchmarks/cached_features.py --text full      # ViT-B/32's own, 16 tokens

Both steps include their data: the batches of the pipeline at 224 pixels, from decoding on, or the
features and tokens that it reads. They alternate, so that a machine that slows down slows both. The
features are computed before, which is timed too. The weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from clip_jax.cli.allocator import tune_allocator

DATA = "embedded:emoji/unseen_drawing-*.tar"  # 2,843 pictures


def config_of(args: argparse.Namespace, cached: bool, folder: str) -> Any:
    """The config of a run on pictures, or on cached features."""
    from clip_jax import config as config_lib

    c, _ = config_lib.load(str(config_lib.ROOT / "configs" / "vit_b32.py"))
    with c.unlocked():
        c.batch_size, c.steps, c.dtype, c.remat = args.batch_size, 1_000, args.dtype, "none"
        c.chunk.update(image=0, text=0)
        c.model.text.context_length = 16
        if args.text == "small":
            c.model.text.update(width=192, layers=0, heads=3)
        c.workdir = folder
        c.data.update(train=DATA, captions=("{name}",), cache_features=cached, features=folder)
        c.optimizer.update(freeze="vision", warmup_steps=0)
        c.evaluate.suite = ()
    return c


def prepare_step(args: argparse.Namespace, cached: bool, folder: str) -> Callable[[], float]:
    """A function that does one step, from the data on, and returns seconds."""
    import jax

    from clip_jax.training.run import prepare
    from clip_jax.training.trainer import Trainer

    trainer = Trainer(prepare(config_of(args, cached, folder)))
    batches, state = trainer.data(), trainer.fresh()
    began = time.perf_counter()
    trainer.fill_feature_cache(state.variables, print)
    if cached:
        print(f"features: {time.perf_counter() - began:.0f} s with compilation", flush=True)
    compiled: dict[int, Any] = {}

    def run_step() -> float:
        nonlocal state
        began = time.perf_counter()
        batch = trainer.place(next(batches))
        width = batch["tokens"].shape[1]
        if width not in compiled:
            compiled[width] = trainer.compile(width)
            began = time.perf_counter()
        state, metrics = compiled[width](state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    for _ in range(2):
        run_step()
    return run_step


def main() -> None:
    """Alternates the two and prints their medians and the ratio."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--text", default="small", choices=["small", "full"])
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--steps", type=int, default=8, help="of each, counted")
    p.add_argument("--dtype", default="mixed")
    args = p.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            name: prepare_step(args, name == "cached", folder) for name in ("cached", "pictures")
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.steps):
            for name, step in steps.items():
                seconds[name].append(step())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<9} {1e3 * median:8.1f} ms a step of {args.batch_size} pairs")
    print(f"on cached features it is {medians['pictures'] / medians['cached']:.1f} times as fast")


if __name__ == "__main__":
    main()
