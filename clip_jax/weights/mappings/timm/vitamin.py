"""The mapping of ViTamin in timm, whose `VisionTransformer` has convolutions before its blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.vitamin_configs import ViTaminConfig
from clip_jax.weights.mappings.leaf import Leaf, blocks, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower

_THEIRS = "patch_embed.backbone"


class TimmViTamin(TimmTower):
    """The mapping of a ViTamin."""

    name = "timm_vitamin"
    description = "a ViTamin of timm"
    kind = "vitamin"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        needed = (f"{_THEIRS}.stages.0.0.conv1_1x1.weight", "blocks.0.mlp.w0.weight")
        return all(name in names for name in needed)

    def leaves(self, tower: ViTaminConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        ours = "vision/stages"
        form = "convolution"
        for number in (1, 2):
            theirs = f"{_THEIRS}.stem.conv{number}"
            yield from linear(f"{ours}/conv{number}", theirs, form=form)
        yield from norm(f"{ours}/ln_stem", f"{_THEIRS}.stem.norm1")
        for i, depth in enumerate(tower.stem_layers):
            stage, theirs = f"{ours}/stage{i + 1}", f"{_THEIRS}.stages.{i}"
            yield from _mbconv(f"{stage}/first", f"{theirs}.0")
            if i:  # the first stage does not change the number of channels
                shortcut = f"{theirs}.0.shortcut.expand"
                yield from linear(f"{stage}/first/shortcut", shortcut, form="pointwise")
            if depth > 1:
                yield from _mbconv(f"{stage}/rest", f"{theirs}.{{}}", layers=tuple(range(1, depth)))
        yield from norm(f"{ours}/ln", f"{_THEIRS}.pool.norm")
        yield from linear(f"{ours}/conv3", f"{_THEIRS}.pool.proj", form=form)
        if tower.positions:
            yield single("vision/positional_embedding", "pos_embed", "leading1")
        yield from blocks("vision", "blocks", "vitamin", tower.layers)
        yield from norm("vision/ln_post", "fc_norm")


def _mbconv(ours: str, theirs: str, **options: Any) -> Iterator[Leaf]:
    yield from norm(f"{ours}/ln", f"{theirs}.pre_norm", **options)
    yield from linear(f"{ours}/expand", f"{theirs}.conv1_1x1", form="pointwise", **options)
    yield from linear(f"{ours}/depthwise", f"{theirs}.conv2_kxk", form="convolution", **options)
    yield from linear(f"{ours}/project", f"{theirs}.conv3_1x1", form="pointwise", **options)
