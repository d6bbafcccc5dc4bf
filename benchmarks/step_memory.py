"""Memory of a whole training step on TPUs, by how many parts the batch is taken in.

    pip install libtpu==0.0.52 && python benchmarks/step_memory.py --parts 16 64

The step is compiled by TPU's compiler, which needs no TPU, and is not run; only one process at a
time may hold it. Forward, loss over the whole batch, backward, AdamW; bfloat16, full
rematerialisation, parameters and optimizer over all chips (fsdp). A step that does not fit says so.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies

from clip_jax import optim, partition, step
from clip_jax.models import zoo
from clip_jax.models.clip import abstract_model
from clip_jax.objectives import Contrastive
from configs import common


def memory(model: str, batch_size: int, topology: str, parts: int, layout: str) -> float:
    """GiB of HBM a chip."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = partition.make_mesh(dict(data=1, fsdp=-1), devices)
    config = zoo.find(model)
    optimizer = optim.make_optimizer(common.get_config().optimizer, lambda _: 5e-4)
    like = step.abstract_state(config, optimizer, mesh)
    graph = nnx.graphdef(abstract_model(config, "bfloat16", "full"))
    train_step = step.make_train_step(graph, Contrastive(layout), optimizer, 0, accumulate=parts)
    size = config.vision.image_size
    rows = {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((batch_size, config.text.context_length), np.int32),
    }
    used = step.compile_step(train_step, like, mesh).lower(like, rows).compile().memory_analysis()
    arguments = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return (arguments + used.temp_size_in_bytes) / 2**30


def main() -> None:
    """Prints a row for each number of parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--batch-size", type=int, default=32_768)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--parts", nargs="+", type=int, default=[1, 4, 16, 64])
    args = parser.parse_args()
    for parts in args.parts:
        began = time.perf_counter()
        try:
            found = memory(args.model, args.batch_size, args.topology, parts, args.layout)
            said = f"{found:.2f} GiB a chip"
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            said = "does not fit: " + str(error).splitlines()[0][:200]
        seconds = time.perf_counter() - began
        print(
            f"{args.model}, {args.batch_size:,} pairs on {args.topology}, {parts} parts: {said} "
            f"(compiled in {seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
