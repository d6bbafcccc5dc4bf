"""The config of the Swin Transformer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import ProjectedTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import Params, VisionTower, check_blocks, check_layers
from clip_jax.models.vision_configs import MEAN, STD

_MAX_STAGES = 8


@dataclasses.dataclass(frozen=True)
class StageSizes:
    """The sizes of one stage's blocks, a `tower.BlockSizes`, and of its grid.

    Attributes:
      side: the number of rows, and of columns, of the stage's places.
      window: the number of rows, and of columns, of a window.
      shift: the rows and columns by which the windows of every other block are shifted; 0 where one
        window holds all places.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float
    eps: float
    side: int
    window: int
    shift: int


@dataclasses.dataclass(frozen=True)
class SwinConfig(ProjectedTower, VisionTower):
    """The config of a Swin Transformer (Liu et al. 2021). The defaults are those of Swin-B.

    Attributes:
      patch_size: the side of a patch in pixels.
      width: the number of features of the first stage; each later one has twice as many.
      layers: the number of blocks of each stage, which is even.
      head_width: the number of features of each attention head.
      window: the number of rows, and of columns, of the windows inside which blocks attend.
      mlp_ratio: the width of an MLP's hidden layer, divided by the width of its stage.
      projection: from the pooled features to `embed_dim`: `none`, `linear` or `mlp`.
      projection_bias: whether a `linear` projection has a bias.
      eps: the number that LayerNorms add to the variance.
    """

    kind: ClassVar[str] = "swin"
    image_size: int = 224
    patch_size: int = 4
    width: int = 128
    layers: tuple[int, ...] = (2, 2, 18, 2)
    head_width: int = 32
    window: int = 7
    mlp_ratio: float = 4.0
    projection: str = "linear"
    projection_bias: bool = False
    eps: float = 1e-5
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def features(self) -> int:
        """The number of features of the last stage."""
        return self.width * 2 ** (len(self.layers) - 1)

    def stages(self) -> list[StageSizes]:
        """Returns the sizes of each stage."""
        sizes = []
        for i, depth in enumerate(self.layers):
            side, width = self.image_size // (self.patch_size * 2**i), self.width * 2**i
            shift = self.window // 2 if side > self.window else 0
            heads, ratio = width // self.head_width, self.mlp_ratio
            grid = dict(side=side, window=self.window, shift=shift)
            sizes.append(StageSizes(width, depth, heads, ratio, self.eps, **grid))
        return sizes

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        if not 1 <= len(self.layers) <= _MAX_STAGES:
            raise UserError(
                f"model.vision.layers={self.layers} must be the depths of 1 to {_MAX_STAGES} stages"
            )
        if self.width % self.head_width:
            raise UserError(
                f"model.vision.head_width={self.head_width} does not divide "
                f"model.vision.width={self.width}"
            )
        least = self.patch_size * self.window * 2 ** (len(self.layers) - 1)
        if self.image_size % least:
            raise UserError(
                f"model.vision.image_size={self.image_size} is no multiple of {least}, so that "
                f"windows of {self.window} × {self.window} places do not fill every stage"
            )
        for depth in self.layers:
            check_layers("vision", depth, 2)
            if depth % 2:
                raise UserError(
                    f"model.vision.layers={self.layers}: every other block shifts its windows, so "
                    "that each depth must be even"
                )
        for stage in self.stages():
            check_blocks("vision", stage)
        self.check_projection(self.features, embed_dim)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of the last stage, and their features."""
        return self.stages()[-1].side ** 2, self.features

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        total, area = 0, self.window**2
        for i, stage in enumerate(self.stages()):
            places, width = stage.side**2, stage.width
            pixels = self.patch_size**2 * flop_counts.RGB
            total += product(places, 2 * width if i else pixels, width)
            block = product(places, width, 4 * width) + flop_counts.attention(places, area, width)
            total += stage.layers * (block + flop_counts.mlp(stage, places))
        return total + self.projection_flops(self.features, embed_dim)

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters as they are: positions are relative, inside a window."""
        return params

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        depths = "-".join(map(str, self.layers))
        return f"{self.kind} {self.image_size}px/{self.patch_size} {depths}×{self.width}"
