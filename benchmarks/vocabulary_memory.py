"""Memory of the cross-entropy over a vocabulary on TPUs: in parts, and with all logits at once.

    pip install libtpu==0.0.52 && python benchmarks/vocabulary_memory.py

The loss and its gradients alone are compiled for eight chips of a TPU v5e, not run. The TPU
compiler needs no TPU; only one process at a time can use it. In MiB of HBM per chip, `temporary` is
what is neither argument nor result, `all` includes both.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from clip_jax.distributed import sharding
from clip_jax.losses import vocabulary

EVERYTHING = 1 << 60  # bytes


def memory(rows: int, tokens: int, width: int, words: int, max_bytes: int) -> tuple[float, float]:
    """Returns MiB of temporaries, and in total, on each of the chips."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = sharding.make_mesh(dict(data=8), topology.devices)

    def mean_loss(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
        shares = jnp.ones(targets.shape)
        losses = vocabulary.token_losses(hidden, kernel, None, targets, shares, max_bytes=max_bytes)
        return jnp.mean(losses)

    def step(*args: jax.Array) -> tuple:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(mean_loss, argnums=(0, 1))(*args)

    split, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    hidden = jax.ShapeDtypeStruct((rows, tokens, width), jnp.bfloat16, sharding=split)
    kernel = jax.ShapeDtypeStruct((width, words), jnp.float32, sharding=replicated)
    targets = jax.ShapeDtypeStruct((rows, tokens, 1), jnp.int32, sharding=split)
    places = (replicated, (split, replicated))
    compiled = jax.jit(step, out_shardings=places).lower(hidden, kernel, targets).compile()
    used = compiled.memory_analysis()
    temporary = used.temp_size_in_bytes
    everything = temporary + used.argument_size_in_bytes + used.output_size_in_bytes
    return temporary / 2**20, everything / 2**20


def main() -> None:
    """Prints the memory of both, and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--words", type=int, default=49_408)
    args = parser.parse_args()
    sizes = args.captions, args.tokens, args.width, args.words
    parts = memory(*sizes, vocabulary.MAX_BYTES)
    print(f"in parts: temporary {parts[0]:,.0f}, all {parts[1]:,.0f} MiB per chip", flush=True)
    try:
        whole = memory(*sizes, EVERYTHING)
    except jax.errors.JaxRuntimeError as error:  # the compiler refuses what exceeds 16 GiB
        print(f"at once: does not compile: {str(error).splitlines()[0]}")
        return
    print(f"at once: temporary {whole[0]:,.0f}, all {whole[1]:,.0f} MiB per chip")
    ratios = (w / p for w, p in zip(whole, parts, strict=True))
    print("ratio: temporary {:.1f}, all {:.1f}".format(*ratios))


if __name__ == "__main__":
    main()
