"""The mapping of timm's `ConvNeXt`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.weights.mappings.leaf import Leaf, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower


class TimmConvNeXt(TimmTower):
    """The mapping of a ConvNeXt."""

    name = "timm_convnext"
    description = "a ConvNeXt of timm"
    kind = "convnext"
    classifier = "head.fc"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        needed = ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.norm.weight")
        return all(name in names for name in needed)

    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        yield from linear("vision/stem", "stem.0", form="convolution")
        yield from norm("vision/ln_stem", "stem.1")
        for i, depth in enumerate(tower.layers):
            if i:
                ours, theirs = f"vision/downsample{i + 1}", f"stages.{i}.downsample"
                yield from norm(f"{ours}/ln", f"{theirs}.0")
                yield from linear(f"{ours}/convolution", f"{theirs}.1", form="convolution")
            ours, theirs = f"vision/stage{i + 1}", f"stages.{i}.blocks.{{}}"
            layers: dict[str, Any] = dict(layers=tuple(range(depth)))
            form = "convolution"
            yield from linear(f"{ours}/depthwise", f"{theirs}.conv_dw", form=form, **layers)
            yield from norm(f"{ours}/ln", f"{theirs}.norm", **layers)
            yield from linear(f"{ours}/fc", f"{theirs}.mlp.fc1", **layers)
            yield from linear(f"{ours}/proj", f"{theirs}.mlp.fc2", **layers)
            yield single(f"{ours}/scale", f"{theirs}.gamma", **layers)
        yield from norm("vision/ln_post", "head.norm")
