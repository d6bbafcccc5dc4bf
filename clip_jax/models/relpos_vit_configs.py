"""The config of timm's vision Transformer with relative positions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import ProjectedTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import Params, VisionTower, check_blocks, check_layers
from clip_jax.models.vision_configs import MEAN, STD


@dataclasses.dataclass(frozen=True)
class RelPosViTConfig(TransformerTower, ProjectedTower, VisionTower):
    """The config of a vision Transformer whose attention adds a function of two places' distance.

    The defaults are those of timm's `vit_relpos_medium_patch16_cls_224`. A class token gives the
    output; its attention has no positions.

    Attributes:
      patch_size: the side of a patch in pixels.
      position_width: the width of the hidden layer of the MLP that maps a distance to what each
        head's attention adds; each block has its own.
      layer_scale: the initial value of the gains of a block's two branches.
    """

    kind: ClassVar[str] = "relpos_vit"
    pool: ClassVar[str] = "class"
    image_size: int = 224
    patch_size: int = 16
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    position_width: int = 256
    layer_scale: float = 1e-6
    eps: float = 1e-6
    projection: str = "linear"
    projection_bias: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        check_blocks("vision", self)
        check_layers("vision", self.layers, 1)
        if self.image_size % self.patch_size:
            raise UserError(
                f"model.vision.patch_size={self.patch_size} does not divide "
                f"model.vision.image_size={self.image_size}"
            )
        if self.layer_scale <= 0:
            raise UserError(f"model.vision.layer_scale={self.layer_scale} must be above 0")
        self.check_projection(self.width, embed_dim)

    @property
    def side(self) -> int:
        """The number of rows, and of columns, of an image's patches."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks."""
        return self.side**2 + 1

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of patches, and their features."""
        return self.side**2, self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image.

        The MLPs of positions do not count: a batch computes them once.
        """
        pixels = self.patch_size**2 * flop_counts.RGB
        total = product(self.side**2, pixels, self.width)
        total += flop_counts.transformer(self, self.tokens)
        return total + self.projection_flops(self.width, embed_dim)

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters as they are: positions are a function of distances."""
        return params

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px/{self.patch_size} {self.layers}×{self.width}"
