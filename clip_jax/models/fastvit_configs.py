"""The config of FastViT (Vasu et al. 2023), the image tower of MobileCLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import AnySizeTower, ProjectedTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import PixelOptions, VisionTower, check_layers, hidden_width
from clip_jax.models.vision_configs import MEAN, STD

HEAD = 32  # the features of an attention head
POSITIONS = 7  # the side of a window of conditional positions
LARGE, SMALL = 7, 3  # the windows of the two branches that halve an image
MLP_WINDOW, MIXER_WINDOW = 7, 3
_MAX_STAGES = 8


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
      number: from 1.
      width: its channels.
      layers: the number of its blocks.
      mlp_ratio, eps: those of the tower.
      attends: whether its blocks mix places by attention, after conditional positions; the others
        do by convolutions.
      squeezes: whether its channels are scaled by squeeze-and-excite as the image is halved.
    """

    number: int
    width: int
    layers: int
    mlp_ratio: float
    eps: float
    attends: bool
    squeezes: bool

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.width // HEAD


@dataclasses.dataclass(frozen=True)
class FastViTConfig(AnySizeTower, ProjectedTower, VisionTower):
    """The config of a FastViT. The defaults are those of MobileCLIP-S0.

    MobileCLIP (Vasu et al. 2024) and MobileCLIP 2 (Faghri et al. 2025) have it in five sizes.

    Attributes:
      width: the channels of the first stage; each stage has twice those of the one before.
      layers: the number of blocks of each stage.
      mlp_ratio: the width of an MLP's hidden layer, divided by that of its stage.
      attention_stages: how many of the last stages have attention and conditional positions.
      squeeze_stages: how many of the last stages begin with squeeze-and-excite.
      layer_norm: whether attention has LayerNorms, and not batch normalizations, before it.
      stem_scale: whether the convolutions of the stem have a branch that scales single pixels.
      single: whether sums of branches are single convolutions, as `reparameterisation` makes them.
      eps: the number that batch normalizations and LayerNorms add to the variance.
      momentum: the weight of a batch in the running statistics.
    """

    kind: ClassVar[str] = "fastvit"
    image_size: int = 256
    width: int = 64
    layers: tuple[int, ...] = (2, 6, 10, 2)
    mlp_ratio: float = 3.0
    attention_stages: int = 1
    squeeze_stages: int = 2
    layer_norm: bool = False
    stem_scale: bool = True
    single: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    projection: str = "linear"
    projection_bias: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        if not 1 <= len(self.layers) <= _MAX_STAGES:
            raise UserError(
                f"model.vision.layers={self.layers} must be the depths of 1 to {_MAX_STAGES} stages"
            )
        for stage in self.stages():
            check_layers("vision", stage.layers, 1)
            if stage.attends and stage.width % HEAD:
                raise UserError(
                    f"model.vision.width={self.width} gives stage {stage.number} {stage.width} "
                    f"channels, which attention divides into heads of {HEAD}"
                )
            if hidden_width(stage) < 1:
                raise UserError(f"model.vision.mlp_ratio={self.mlp_ratio} leaves its MLPs no width")
        self.check_projection(self.features, embed_dim)

    def stages(self) -> Iterator[Stage]:
        """Yields the stages."""
        for i, depth in enumerate(self.layers):
            left = len(self.layers) - i
            yield Stage(
                i + 1,
                self.width * 2**i,
                depth,
                self.mlp_ratio,
                self.eps,
                attends=left <= self.attention_stages,
                squeezes=left <= self.squeeze_stages and i > 0,
            )

    @property
    def features(self) -> int:
        """The number of features before the projection."""
        return self.width * 2 ** len(self.layers)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of the last stage, and their features."""
        return self._sides()[-1] ** 2, self.features

    def _sides(self) -> list[int]:
        """Returns the sides of the image: half of it, and in each stage."""
        sides, side = [], self.image_size
        for _ in range(len(self.layers) + 1):
            side = flop_counts.convolved_side(side, 3, 2, 2)
            sides.append(side)
        return sides

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        half, *sides = self._sides()
        scales = self.stem_scale
        total = self._branches(half, flop_counts.RGB, self.width, 3, *[1] * scales)
        total += self._branches(sides[0], 1, self.width, 3, *[1] * scales)
        total += self._branches(sides[0], self.width, self.width, 1)
        for stage, side in zip(self.stages(), sides, strict=True):
            places, width = side**2, stage.width
            if stage.number > 1:
                total += self._branches(side, 1, width, LARGE, SMALL)
                total += self._branches(side, width, width, 1)
            if stage.squeezes:
                total += 2 * product(1, width, squeezed(width))
            if stage.attends:
                total += product(places, POSITIONS**2, width)
                mixing = product(places, width, 4 * width)
                mixing += flop_counts.attention(places, places, width)
            else:
                mixing = self._branches(side, 1, width, MIXER_WINDOW, 1)
            mlp = product(places, MLP_WINDOW**2, width) + flop_counts.mlp(stage, places)
            total += stage.layers * (mixing + mlp)
        total += self._branches(sides[-1], 1, self.features, 3, 1)
        total += 2 * product(1, self.features, last_squeezed(self.features))
        return total + self.projection_flops(self.features, embed_dim)

    def _branches(self, side: int, inputs: int, outputs: int, *sizes: int) -> int:
        """Returns the FLOPs of convolutions that are added: one if they are `single`.

        Args:
          side: of the result, in places.
          inputs: channels that each output sees.
          outputs: channels of the result.
          sizes: the sides of the branches' windows, the largest first.
        """
        windows = sizes[:1] if self.single else sizes
        return sum(product(side**2, size**2 * inputs, outputs) for size in windows)

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared."""
        return {"interpolation": "bilinear"}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px {'-'.join(map(str, self.layers))}×{self.width}"


def squeezed(width: int) -> int:
    """Returns the inner width of squeeze-and-excite where images are halved."""
    return max(8, (width // 4 + 4) // 8 * 8)


def last_squeezed(features: int) -> int:
    """Returns the inner width of squeeze-and-excite after the last stage."""
    return max(1, int(features / 16 + 0.5))
