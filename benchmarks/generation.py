"""Time of writing captions with and without the cache of keys and values, side by side.

    python benchmarks/generation.py

The decoder is that of `configs/cappa_b16.py` (6 layers, width 768, 32,000 words) with random
weights, over the 196 places of a ViT-B/16; every caption is written to its full length. Without the
cache each token takes a forward pass over the whole caption. Both write the same tokens. They
alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clip_jax.models.architectures import find_architecture
from clip_jax.models.decoder import DecoderConfig
from clip_jax.models.generation import Generation, generate
from clip_jax.models.words import word_logits


def make(batch: int, tokens: int) -> tuple[Callable[[], jax.Array], Callable[[], jax.Array]]:
    """Returns the two functions, each of which writes `batch` captions of `tokens` tokens."""
    base = find_architecture("ViT-B/16")
    text = dataclasses.replace(base.text, context_length=tokens, vocab_size=32_000)
    config = dataclasses.replace(base, text=text)
    head = DecoderConfig(width=768, layers=6, heads=12)
    decoder = head.build(config, dtype="float32", remat="none", rngs=nnx.Rngs(0))
    places, channels = config.vision.grid_shape()
    grid = jax.random.normal(jax.random.key(1), (batch, places, channels))
    never = Generation(end_id=-1, pad_id=0, max_tokens=tokens)  # no token ends a caption
    graph, params = nnx.split(decoder)

    @jax.jit
    def cached(params: nnx.State, grid: jax.Array) -> jax.Array:
        return generate(nnx.merge(graph, params), grid, never, jax.random.key(0))

    @jax.jit
    def uncached(params: nnx.State, grid: jax.Array) -> jax.Array:
        decoder = nnx.merge(graph, params)

        def write(written: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
            hidden = decoder(grid, written)[:, position]
            logits = word_logits(hidden, decoder.output_kernel, decoder.output_bias[...])
            return written.at[:, position].set(jnp.argmax(logits, axis=-1)), None

        start = jnp.zeros((batch, tokens), jnp.int32)
        return jax.lax.scan(write, start, jnp.arange(tokens))[0]

    return lambda: cached(params, grid), lambda: uncached(params, grid)


def main() -> None:
    """Prints the median times, their ratio, and whether the tokens are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    both = make(args.batch, args.tokens)
    results = [np.asarray(run()) for run in both]  # compiles
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.rounds):
        for run, seconds in zip(both, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - began)
    cached, uncached = (statistics.median(seconds) for seconds in times)
    same = "the same" if np.array_equal(*results) else "DIFFERENT"
    print(
        f"{args.batch} captions of {args.tokens} tokens: with the cache {cached:.2f} s, without "
        f"{uncached:.2f} s, ratio {uncached / cached:.1f}; {same} tokens"
    )


if __name__ == "__main__":
    main()
