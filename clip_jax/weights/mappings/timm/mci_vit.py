"""The mapping of timm's `vit_base_mci_224`: the tower of MobileCLIP-B."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from clip_jax.models.mci_vit_configs import MCiViTConfig
from clip_jax.weights.mappings.leaf import Leaf, batch_norm, blocks, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower

_STEM = "patch_embed.backbone"


class TimmMCiViT(TimmTower):
    """The mapping of a vision Transformer with a convolutional stem."""

    name = "timm_mci_vit"
    description = "a vision Transformer of timm with MobileCLIP's stem"
    kind = "mci_vit"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        return {f"{_STEM}.0.conv.weight", f"{_STEM}.2.conv.bias", "cls_token"}.issubset(names)

    def leaves(self, tower: MCiViTConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        yield single("vision/class_embedding", "cls_token", "leading2")
        yield single("vision/positional_embedding", "pos_embed", "leading1")
        for i in (1, 2):
            kernel = f"{_STEM}.{i - 1}.conv.weight"
            yield single(f"vision/stem/conv{i}/kernel", kernel, "convolution")
            yield from batch_norm(f"vision/stem/bn{i}", f"{_STEM}.{i - 1}.bn")
        yield from linear("vision/stem/conv3", f"{_STEM}.2.conv", form="convolution")
        yield from blocks("vision", "blocks", "timm", tower.layers)
        yield from norm("vision/ln_post", "norm")
