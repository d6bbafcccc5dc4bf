"""The mapping of timm's `SwinTransformer`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.swin_configs import SwinConfig
from clip_jax.weights.mappings.leaf import Leaf, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower


class TimmSwin(TimmTower):
    """The mapping of a Swin Transformer."""

    name = "timm_swin"
    description = "a Swin Transformer of timm"
    kind = "swin"
    classifier = "head.fc"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        block = "layers.0.blocks.0"
        needed = (f"{block}.attn.relative_position_bias_table", f"{block}.norm1.weight")
        return all(name in names for name in needed)

    def leaves(self, tower: SwinConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        yield from linear("vision/patch_embedding", "patch_embed.proj", form="patches")
        yield from norm("vision/ln_pre", "patch_embed.norm")
        for i, depth in enumerate(tower.layers):
            if i:
                ours, theirs = f"vision/merge{i + 1}", f"layers.{i}.downsample"
                yield from norm(f"{ours}/ln", f"{theirs}.norm")
                yield from linear(f"{ours}/reduction", f"{theirs}.reduction", bias=False)
            ours, theirs = f"vision/stage{i + 1}", f"layers.{i}.blocks.{{}}"
            yield from _blocks(f"{ours}/plain", theirs, layers=tuple(range(0, depth, 2)))
            yield from _blocks(f"{ours}/shifted", theirs, layers=tuple(range(1, depth, 2)))
        yield from norm("vision/ln_post", "norm")


def _blocks(ours: str, theirs: str, **options: Any) -> Iterator[Leaf]:
    table = f"{theirs}.attn.relative_position_bias_table"
    yield from norm(f"{ours}/ln_1", f"{theirs}.norm1", **options)
    yield single(f"{ours}/attention/positions", table, **options)
    yield from linear(f"{ours}/attention/qkv", f"{theirs}.attn.qkv", **options)
    yield from linear(f"{ours}/attention/out", f"{theirs}.attn.proj", **options)
    yield from norm(f"{ours}/ln_2", f"{theirs}.norm2", **options)
    yield from linear(f"{ours}/mlp/fc", f"{theirs}.mlp.fc1", **options)
    yield from linear(f"{ours}/mlp/proj", f"{theirs}.mlp.fc2", **options)
