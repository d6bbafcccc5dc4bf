"""Memory of the contrastive losses on TPUs: the loss and its gradients alone, compiled, not run.

    pip install libtpu==0.0.52 && python benchmarks/loss_memory.py

The TPU compiler needs no TPU; only one process at a time can use it. The features are fp32, 768
wide, and sharded over all chips. In MiB of HBM per chip, `temporary` is what is neither argument
nor result (without what the compiler places in a chip's VMEM), `all` includes both.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from clip_jax.distributed import sharding
from clip_jax.losses.contrastive import LAYOUTS, sigmoid_loss, softmax_loss

# chips: topology
TOPOLOGIES = {8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
COLUMNS = ((8, 32768), (16, 32768), (64, 131072), (256, 32768))
WIDTH = 768


def memory(kind: str, layout: str, chips: int, n: int, block: int) -> tuple[float, float]:
    """MiB of temporaries, and in total, on each of the chips."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chips])
    mesh = sharding.make_mesh(dict(data=chips), topology.devices)
    loss = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}[kind]
    scalars = 1 if kind == "softmax" else 2

    def step(*args: jax.Array) -> tuple:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            value = partial(loss, layout=layout, block=block)
            numbers = tuple(range(2 + scalars))
            return jax.value_and_grad(lambda *args: value(*args)[0], argnums=numbers)(*args)

    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    features = jax.ShapeDtypeStruct((n, WIDTH), jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    places = (replicated, (rows, rows, *[replicated] * scalars))
    lowered = jax.jit(step, out_shardings=places).lower(features, features, *[scalar] * scalars)
    used = lowered.compile().memory_analysis()
    temporary = used.temp_size_in_bytes
    everything = temporary + used.argument_size_in_bytes + used.output_size_in_bytes
    return temporary / 2**20, everything / 2**20


def main() -> None:
    """Prints a row for each layout, and the growth of the blockwise loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layouts", nargs="+", default=[x for x in LAYOUTS if x != "auto"])
    parser.add_argument("--losses", nargs="+", default=["softmax", "sigmoid"])
    parser.add_argument("--chips", nargs="+", type=int, default=[8, 16, 64, 256])
    parser.add_argument("--block", type=int, default=0, help="rows of a tile; 0: the default")
    args = parser.parse_args()
    columns = [(chips, n) for chips, n in COLUMNS if chips in args.chips]
    for kind in args.losses:
        for layout in args.layouts:
            for chips, n in columns:
                began = time.perf_counter()
                temporary, everything = memory(kind, layout, chips, n, args.block)
                print(
                    f"{kind:8} {layout:10} v5e-{chips:<4} N = {n:7,}: temporary {temporary:8.1f}, "
                    f"all {everything:8.1f} MiB  (compiled in {time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
        if "blockwise" in args.layouts:
            sizes = [65536, 131072, 262144, 524288]  # too large for any VMEM
            used = [memory(kind, "blockwise", 8, n, args.block) for n in sizes]
            for which, values in zip(("temporary", "all"), zip(*used, strict=True), strict=True):
                slope, start = np.polyfit(sizes, values, 1)
                off = max(abs(np.polyval((slope, start), sizes) - values)) / max(values)
                print(
                    f"{kind:8} blockwise on v5e-8, N = {sizes}: {which} "
                    f"{', '.join(f'{x:.1f}' for x in values)} MiB = {start:.2f} + "
                    f"{1024 * slope:.3f} N/1024, at most {off:.1%} off"
                )


if __name__ == "__main__":
    main()
