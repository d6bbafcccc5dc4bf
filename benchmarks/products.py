"""The rate of the fp32 matrix products of a ViT-B/32 step on this CPU, for XLA and for torch.

    python benchmarks/products.py

The products of twelve layers, 1600×768×3072 and back, each fed by the one before: a step without
any loss between its products. `forward` is x·W, `input` x·Wᵀ, `kernel` xᵀ·y.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

from clip_jax.cli.allocator import tune_allocator

ROWS, WIDTH, HIDDEN, LAYERS = 1600, 768, 3072, 12
FLOPS = LAYERS * 2 * 2 * ROWS * WIDTH * HIDDEN


def arrays() -> tuple[Any, list[Any], list[Any], list[Any]]:
    """x [rows, width], kernels there and back, and hidden activations, all float32."""
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(rows: int, columns: int) -> Any:
        return (rng.normal(size=(rows, columns)) * rows**-0.5).astype(np.float32)

    up, down = ([normal(*s) for _ in range(LAYERS)] for s in ((WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    return normal(ROWS, WIDTH), up, down, [normal(ROWS, HIDDEN) for _ in range(LAYERS)]


def forward(x: Any, up: list[Any], down: list[Any], _: list[Any]) -> Any:
    """x through all kernels."""
    for first, second in zip(up, down, strict=True):
        x = (x @ first) @ second
    return x


def to_input(x: Any, up: list[Any], down: list[Any], _: list[Any]) -> Any:
    """x through all transposed kernels, as gradients flow."""
    for first, second in zip(up, down, strict=True):
        x = (x @ second.T) @ first.T
    return x


def to_kernel(x: Any, up: list[Any], down: list[Any], hidden: list[Any]) -> Any:
    """The gradients of the kernels."""
    return [[x.T @ y, y.T @ x] for y in hidden]


WORK = {"forward": forward, "input": to_input, "kernel": to_kernel}


def best(work: Callable[[], Any], runs: int) -> float:
    """The best rate of several runs, in GFLOP/s."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return FLOPS / min(seconds[1:]) / 1e9


def main() -> None:
    """Prints the rates of XLA and torch, alternating."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=6, help="counted runs of each")
    runs = parser.parse_args().runs

    import jax

    inputs = arrays()
    on_device = jax.device_put(inputs)
    torch = None
    if importlib.util.find_spec("torch"):
        import torch

        tensors = jax.tree.map(torch.from_numpy, inputs)
    for name, work in WORK.items():
        compiled = jax.jit(work)
        rates = {"XLA": best(lambda f=compiled: jax.block_until_ready(f(*on_device)), runs)}
        if torch:
            rates["torch"] = best(lambda f=work: f(*tensors), runs)
        print(name, *(f"{side} {rate:.0f} GFLOP/s" for side, rate in rates.items()), sep="  ")


if __name__ == "__main__":
    tune_allocator()
    main()
