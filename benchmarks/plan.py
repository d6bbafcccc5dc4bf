"""The plans of the models at their full batches: the table of docs/benchmarks.md.

    pip install -e '.[plan]' && python benchmarks/plan.py configs/vit_b16.py:v5e:16x16
    pip install -e '.[plan-gpu]' && python benchmarks/plan.py --gpus

An argument is a config, a topology and, after commas, keys that differ, such as
`configs/vit_b16.py:v5e:2x4,accumulate=16,chunk.image=0`. Without arguments the cases of `CASES` are
compiled, with --gpus those of `GPU_CASES`. A step takes minutes to compile. The figures are
estimates of the compiler, not run.
"""

from __future__ import annotations

import argparse
import os
import sys

from clip_jax.plan import topology

os.environ.update(topology.LIBTPU_ENVIRONMENT, JAX_PLATFORMS="cpu")

from clip_jax import config as config_lib
from clip_jax.plan import search
from clip_jax.plan.result import Estimate

CASES = tuple(
    f"configs/{model}.py:{slice_}"
    for slice_ in ("v5e:16x16", "v5p:4x4x4", "v5p:4x4x4x2")
    for model in ("vit_b16", "vit_l14")
)
GPU_CASES = (
    *(f"configs/vit_b16.py:{gpu}:8,batch_size=8192" for gpu in ("h100", "a100", "h200", "b200")),
    "configs/vit_b16.py:h100:4x8",
    "configs/vit_l14.py:h100:8,batch_size=8192",
    "configs/vit_l14_336.py:h100:1,batch_size=2048,remat=full:2",
    "configs/vit_l14_336.py:h100:1,batch_size=2048,accumulate=2",
    "configs/vit_b32.py:rtx4090:1,batch_size=1024",
    "configs/vit_b32.py:l4:1,batch_size=1024",
    "configs/vit_b32.py:rtx3070:1,batch_size=256,remat=dots,optimizer.moments=bfloat16",
    "configs/vit_b32.py:rtx3070:1,batch_size=256",
)
HEAD = ("case", "HBM GiB", "est ms", "links ms", "images/s/chip", "MFU", "compiled in s")


def planned(case: str) -> Estimate:
    """The plan of one argument."""
    place, *overrides = case.split(",")
    path, _, name = place.partition(":")
    config, _ = config_lib.load(path, overrides)
    return search.estimate_and_log(config, name, lambda line: print(line, file=sys.stderr))


def row(case: str, estimate: Estimate) -> list[str]:
    """The line of the table for a plan; memory of a chip, which may be two devices."""
    devices_per_chip = estimate.devices / (estimate.chips or estimate.devices)
    size = f"{devices_per_chip * estimate.hbm_bytes / 2**30:.2f}"
    if not estimate.fits or estimate.estimated_seconds is None:
        return [case, f"{size} wanted" if not estimate.fits else size, *[""] * 4, ""]
    return [
        case,
        size,
        f"{1e3 * estimate.estimated_seconds:.0f}",
        f"{1e3 * (estimate.interconnect_seconds or 0):.0f}",
        f"{estimate.images_per_second_per_chip:.0f}",
        f"{100 * (estimate.mfu or 0):.1f} %",
        f"{estimate.compile_seconds:.0f}",
    ]


def main() -> None:
    """Prints a row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CONFIG:TOPOLOGY[,KEY=VALUE]")
    parser.add_argument("--gpus", action="store_true", help="the cases for GPUs")
    args = parser.parse_args()
    print("|", " | ".join(HEAD), "|\n" + "|---" * len(HEAD) + "|")
    for case in GPU_CASES if args.gpus else args.cases:
        print("|", " | ".join(row(case, planned(case))), "|", flush=True)


if __name__ == "__main__":
    main()
