"""The mapping of timm's `VisionTransformerRelPos` with an MLP of positions in each block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.relpos_vit_configs import RelPosViTConfig
from clip_jax.weights.mappings.leaf import Leaf, blocks, gains, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower


class TimmRelPosViT(TimmTower):
    """The mapping of a vision Transformer with relative positions and a class token."""

    name = "timm_relpos_vit"
    description = "a vision Transformer of timm with relative positions"
    kind = "relpos_vit"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        return {"blocks.0.attn.rel_pos.mlp.fc1.weight", "cls_token"}.issubset(names)

    def leaves(self, tower: RelPosViTConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        yield single("vision/class_embedding", "cls_token", "leading2")
        yield from linear("vision/patch_embedding", "patch_embed.proj", form="patches")
        yield from blocks("vision", "blocks", "timm", tower.layers, bias=False)
        ours = "vision/transformer/blocks"
        stacked: dict[str, Any] = dict(layers=tuple(range(tower.layers)))
        for part, layer in (("position_fc", "fc1"), ("position_proj", "fc2")):
            theirs = f"blocks.{{}}.attn.rel_pos.mlp.{layer}"
            yield from linear(f"{ours}/attention/{part}", theirs, **stacked)
        yield from gains(ours, "blocks.{}.ls", **stacked)
        yield from norm("vision/ln_post", "norm")
