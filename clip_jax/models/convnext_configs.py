"""The config of ConvNeXt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import AnySizeTower, ProjectedTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import VisionTower, check_layers
from clip_jax.models.vision_configs import MEAN, STD

PATCH = 4  # pixels a side of what the stem reads
WINDOW = 7  # places a side of what a block's convolution reads
EXPANSION = 4  # of the hidden layer of a block's MLP


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(ProjectedTower, AnySizeTower, VisionTower):
    """The config of a ConvNeXt (Liu et al. 2022).

    Attributes:
      width: the number of channels of the first stage; each later one has twice as many.
      layers: the number of blocks of each of the four stages.
      projection: from the pooled features to `embed_dim`: `none`, `linear` or `mlp`.
      projection_bias: whether a `linear` projection has a bias.
      eps: the number that LayerNorms add to the variance.
    """

    kind: ClassVar[str] = "convnext"
    image_size: int = 224
    width: int = 96
    layers: tuple[int, ...] = (3, 3, 9, 3)
    projection: str = "linear"
    projection_bias: bool = False
    eps: float = 1e-6
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def features(self) -> int:
        """The number of channels of the last stage."""
        return 8 * self.width

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        if self.image_size < 8 * PATCH:
            raise UserError(
                f"model.vision.image_size={self.image_size} is below the {8 * PATCH} pixels that "
                "give the last stage of a convnext one place"
            )
        if len(self.layers) != 4:
            raise UserError(f"model.vision.layers={self.layers} must be the depths of four stages")
        for depth in self.layers:
            check_layers("vision", depth, 1)
        self.check_projection(self.features, embed_dim)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of the last stage, and their channels."""
        return (self.image_size // (8 * PATCH)) ** 2, self.features

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        side, width = self.image_size // PATCH, self.width
        total = product(side**2, PATCH**2 * flop_counts.RGB, width)
        for stage, depth in enumerate(self.layers):
            if stage:
                side //= 2
                total += product(side**2, 4 * width, 2 * width)
                width *= 2
            block = product(side**2, WINDOW**2, width)  # depthwise
            block += 2 * product(side**2, width, EXPANSION * width)
            total += depth * block
        return total + self.projection_flops(self.features, embed_dim)

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px {'-'.join(map(str, self.layers))}×{self.width}"
