"""The mapping of timm's `VisionTransformer`: the towers of SigLIP and of MobileCLIP2-L."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.model_config import VisionConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.mappings.leaf import Leaf, attention_pool, blocks, gains, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower


class TimmViT(TimmTower):
    """The mapping of a vision Transformer with a class token, attention pooling or a mean."""

    name = "timm_vit"
    description = "a vision Transformer of timm"
    kind = "vit"

    def fills(self, tower: Any) -> bool:
        """Returns whether timm has such a tower, where a LayerNorm replaces the patches' bias."""
        return (
            type(tower) is VisionConfig
            and not (tower.stem or tower.registers)
            and tower.patch_bias != tower.ln_pre
        )

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
        others = ("rope.freqs", "blocks.0.attn.norm.weight", "blocks.0.gamma_1")
        return all(name in names for name in needed) and not any(name in names for name in others)

    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        if not self.fills(tower):
            raise UserError(f"timm has no {kind_of(tower)} such as this one")
        return _leaves(tower)


def _leaves(vision: VisionConfig) -> Iterator[Leaf]:
    if vision.class_tokens:
        yield single("vision/class_embedding", "cls_token", "leading2")
    yield single("vision/positional_embedding", "pos_embed", "leading1")
    yield from linear(
        "vision/patch_embedding", "patch_embed.proj", form="patches", bias=vision.patch_bias
    )
    if vision.ln_pre:
        yield from norm("vision/ln_pre", "norm_pre")
    yield from blocks("vision", "blocks", "timm", vision.layers, bias=vision.attention_bias)
    if vision.layer_scale:
        stacked: dict[str, Any] = dict(layers=tuple(range(vision.layers)))
        yield from gains("vision/transformer/blocks", "blocks.{}.ls", **stacked)
    yield from norm("vision/ln_post", "norm")
    if vision.pool == "map":
        yield from attention_pool("vision/pool", "attn_pool")
