"""Time and memory of one step of the contrastive loss on the CPU, compared with open_clip's.

    pip install torch open_clip_torch && python benchmarks/loss_time.py
    python benchmarks/loss_time.py --fits

A step is the loss and its gradients with respect to both features and the scale, fp32, width 512,
on one device. open_clip's `ClipLoss` and the layouts alternate in one process. The result is the
ratio of medians, by wall time and, for machines that others use too, by processor time.

`--fits` finds the largest N, a multiple of 1,024, whose step takes at most `--gib` GiB, including
features and gradients. The dense sides run: each attempt is a fresh process whose address space may
grow by that much. A blockwise step of such a size would run for hours; its result is what XLA
allocates for it, and a smaller one runs within its allocation to show that this is enough.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.cli.allocator import tune_allocator

SIDES = ("open_clip", "dense", "blockwise")
SCALE = 50.0


def features(n: int, width: int) -> list[np.ndarray]:
    """Unit-norm random features of n images and n texts."""
    rng = np.random.default_rng(0)
    both = [rng.standard_normal((n, width), np.float32) for _ in range(2)]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]


def theirs(n: int, width: int) -> Callable[[], float]:
    """A step of open_clip's loss; returns the loss."""
    import peers
    import torch

    peers.import_torchvision()
    from open_clip.loss import ClipLoss

    scale = torch.tensor(SCALE)
    leaves = [*map(torch.from_numpy, features(n, width)), scale]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = ClipLoss()

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()
        return value.item()

    return step


def compiled(layout: str, n: int, width: int) -> Any:
    """A compiled step of a layout: from features and scale to the loss and its gradients."""
    import jax
    import jax.numpy as jnp

    from clip_jax.losses.contrastive import softmax_loss

    def loss(*args: jax.Array) -> jax.Array:
        return softmax_loss(*args, layout=layout)[0]

    rows, scale = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, width), ()))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(rows, rows, scale).compile()


def ours(layout: str, n: int, width: int) -> Callable[[], float]:
    """A step of a layout; returns the loss."""
    import jax
    import jax.numpy as jnp

    args = *map(jnp.asarray, features(n, width)), jnp.float32(SCALE)
    step = compiled(layout, n, width)
    return lambda: float(jax.block_until_ready(step(*args))[0])


def side(name: str, n: int, width: int) -> Callable[[], float]:
    """A step of one of `SIDES`."""
    return theirs(n, width) if name == "open_clip" else ours(name, n, width)


def timed(n: int, width: int, repeats: int) -> None:
    """Alternates all sides and prints medians and ratios."""
    steps = {name: side(name, n, width) for name in SIDES}
    losses = {name: step() for name, step in steps.items()}
    if not np.allclose(list(losses.values()), losses["open_clip"], rtol=1e-5):
        raise SystemExit(f"the losses differ: {losses}")
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter(), time.process_time()
            step()
            wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
            spent[name].append((wall, processor))
    middle = {name: np.median(times, axis=0) for name, times in spent.items()}
    for name, (wall, processor) in middle.items():
        faster = middle["open_clip"] / (wall, processor)
        print(
            f"N = {n:6,}  {name:10} {wall:7.3f} s, {faster[0]:.2f} times as fast as open_clip; "
            f"{processor:7.3f} s of processors, {faster[1]:.2f} times",
            flush=True,
        )


def work(name: str, n: int, width: int, most: float) -> None:
    """One step in this process, which may grow by that many GiB minus the size of the features."""
    side(name, 512, width)()  # starts its threads
    step = side(name, n, width)
    virtual_bytes = (
        int(re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) << 10
    )
    limit = virtual_bytes + int(most * 2**30) - 2 * 4 * n * width
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    step()


def runs(name: str, n: int, width: int, most: float) -> bool:
    """Whether a step in a fresh process gets the memory it asks for."""
    command = [sys.executable, __file__, "--worker", name, "--sizes", str(n), "--width", str(width)]
    return not subprocess.run([*command, "--gib", str(most)], capture_output=True).returncode


def laid_out(n: int, width: int) -> float:
    """GiB of a blockwise step as allocated by XLA; the step is not run."""
    plan = compiled("blockwise", n, width).memory_analysis()
    sizes = plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes
    return sum(sizes) / 2**30


def largest(fits: Callable[[int], bool]) -> int:
    """The largest multiple of 1,024 that fits."""
    low, high = 0, 16
    while fits(1024 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(1024 * middle) else (low, middle)
    return 1024 * low


def fits(width: int, most: float) -> None:
    """Prints what fits, for every side."""
    for name in ("open_clip", "dense"):
        print(f"{name:10} N = {largest(lambda n, name=name: runs(name, n, width, most)):9,}")
    n = largest(lambda n: laid_out(n, width) <= most)
    print(f"blockwise  N = {n:9,}, for which {laid_out(n, width):.3f} GiB are laid out")
    n, least = 16384, laid_out(16384, width)
    if runs("blockwise", n, width, least + 0.125):
        print(f"blockwise  N = {n:9,} runs in the {least:.3f} GiB that are laid out, and 0.125")


def main() -> None:
    """Times the sides, or finds what fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fits", action="store_true", help="find what fits; nothing is timed")
    parser.add_argument("--gib", type=float, default=8)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.sizes[0], args.width, args.gib)
    elif args.fits:
        fits(args.width, args.gib)
    else:
        for n in args.sizes:
            timed(n, args.width, args.repeats)


if __name__ == "__main__":
    if not {"--fits", "--worker"} & set(sys.argv):
        tune_allocator()
    main()
