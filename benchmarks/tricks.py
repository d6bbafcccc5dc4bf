"""What each option saves in memory: a step compiled for a TPU slice, with one more option per row.

    pip install -e '.[plan]' && python benchmarks/tricks.py

Nothing is run. The figures are GiB of HBM per chip by use, and the compiler's estimate of a step's
time. The first row is plain data parallelism in float32; each row keeps the options of the rows
above it.
"""

from __future__ import annotations

import argparse
import os

from clip_jax.plan import topology

os.environ.update(topology.LIBTPU_ENVIRONMENT, JAX_PLATFORMS="cpu")

from clip_jax import config as config_lib
from clip_jax import plan

START = ("mesh.data=-1", "mesh.fsdp=1", "dtype=float32", "remat=none", "chunk.image=0")
TRICKS = (
    ("float32, everything kept", ("chunk.text=0",)),
    ("bfloat16 between layers", ("dtype=bfloat16",)),
    ("results of products kept", ("remat=dots",)),
    ("all of a layer made again", ("remat=full",)),
    ("layers in chunks of 64 rows", ("chunk.image=64", "chunk.text=64")),
    ("moments in bfloat16", ("optimizer.moments=bfloat16",)),
    ("text weights in bfloat16", ("optimizer.text_weights=bfloat16",)),
    ("optimizer over all chips", ("optimizer.sharded=True",)),
    ("parameters over all chips", ("mesh.data=1", "mesh.fsdp=-1", "optimizer.sharded=False")),
    ("batch in four parts", ("accumulate=4",)),
)


def main() -> None:
    """Prints a row for each option."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/vit_b32.py")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--batch-size", type=int, default=512)
    args = parser.parse_args()
    overrides = [f"batch_size={args.batch_size}", *START]
    print(f"{args.config}, batch {args.batch_size:,} on {args.topology}; GiB a chip")
    for name, more in TRICKS:
        overrides += more
        estimate = plan.estimate(config_lib.load(args.config, overrides)[0], args.topology)
        parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in estimate.hbm.items())
        memory = f"{estimate.hbm_bytes / 2**30:5.2f}" if estimate.fits else "does not fit:"
        time = f", {1e3 * estimate.estimated_seconds:.0f} ms" if estimate.estimated_seconds else ""
        seconds = estimate.compile_seconds
        print(f"{name:26} {memory} ({parts}){time} (compiled in {seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
