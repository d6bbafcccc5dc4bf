"""The mapping of timm's `Eva`: the towers of EVA-CLIP and of Perception Encoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.eva_configs import EvaConfig
from clip_jax.weights.mappings.leaf import Leaf, attention_pool, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower

_BLOCKS = "vision/transformer/blocks"


class TimmEva(TimmTower):
    """The mapping of a vision Transformer of EVA's family."""

    name = "timm_eva"
    description = "a vision Transformer of EVA's family in timm"
    kind = "eva"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower.

        Perception Encoder has the names of a SigLIP with a LayerNorm before its blocks.
        """
        keyless = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias"}
        perception = {"norm_pre.weight", "attn_pool.latent", "blocks.0.attn.qkv.bias"}
        return not keyless.isdisjoint(names) or perception.issubset(names)

    def leaves(self, tower: EvaConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        if tower.class_token:
            yield single("vision/class_embedding", "cls_token", "leading2")
        yield single("vision/positional_embedding", "pos_embed", "leading1")
        yield from linear(
            "vision/patch_embedding", "patch_embed.proj", form="patches", bias=not tower.ln_pre
        )
        if tower.ln_pre:
            yield from norm("vision/ln_pre", "norm_pre")
        yield from _attention(tower, layers=tuple(range(tower.layers)))
        yield from _mlp(tower, layers=tuple(range(tower.layers)))
        yield from norm("vision/ln_post", "norm")
        if tower.pool == "map":
            yield from attention_pool("vision/pool", "attn_pool")


def _attention(tower: EvaConfig, **options: Any) -> Iterator[Leaf]:
    ours, theirs = f"{_BLOCKS}/attention", "blocks.{}.attn"
    yield from norm(f"{_BLOCKS}/ln_1", "blocks.{}.norm1", **options)
    names = [f"{theirs}.{part}_proj" for part in "qkv"] if tower.swiglu else [f"{theirs}.qkv"]
    yield from linear(f"{ours}/qkv", *names, bias=tower.key_bias, **options)
    if not tower.key_bias:
        bias = "_proj.bias" if tower.swiglu else "_bias"
        yield single(f"{ours}/q_bias", f"{theirs}.q{bias}", **options)
        yield single(f"{ours}/v_bias", f"{theirs}.v{bias}", **options)
    if tower.swiglu:
        yield from norm(f"{ours}/ln", f"{theirs}.norm", **options)
    yield from linear(f"{ours}/out", f"{theirs}.proj", **options)


def _mlp(tower: EvaConfig, **options: Any) -> Iterator[Leaf]:
    ours, theirs = f"{_BLOCKS}/mlp", "blocks.{}.mlp"
    yield from norm(f"{_BLOCKS}/ln_2", "blocks.{}.norm2", **options)
    if tower.swiglu:
        yield from linear(f"{ours}/gate", f"{theirs}.fc1_g", **options)
        yield from linear(f"{ours}/fc", f"{theirs}.fc1_x", **options)
        yield from norm(f"{ours}/ln", f"{theirs}.norm", **options)
    else:
        yield from linear(f"{ours}/fc", f"{theirs}.fc1", **options)
    yield from linear(f"{ours}/proj", f"{theirs}.fc2", **options)
