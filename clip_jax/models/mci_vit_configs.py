"""The config of MobileCLIP's vision Transformer with a convolutional stem (Vasu et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import ProjectedTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import Params, PixelOptions, VisionTower, check_blocks, check_layers
from clip_jax.models.vision_configs import MEAN, STD

WINDOWS = (4, 2, 2)  # the sides of the squares that the convolutions of the stem tile images with
PATCH = 16  # the side of a patch that comes out of it


@dataclasses.dataclass(frozen=True)
class MCiViTConfig(TransformerTower, ProjectedTower, VisionTower):
    """The config of MobileCLIP-B's image tower. The defaults are its sizes.

    Three convolutions make patches of 16 pixels, the first two with a batch normalization and a
    quarter of the width. A class token without a position gives the output.

    Attributes:
      momentum: the weight of a batch in the running statistics.
    """

    kind: ClassVar[str] = "mci_vit"
    pool: ClassVar[str] = "class"
    image_size: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    momentum: float = 0.1
    projection: str = "linear"
    projection_bias: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        check_blocks("vision", self)
        check_layers("vision", self.layers, 1)
        if self.width % 4:
            raise UserError(f"model.vision.width={self.width} is no multiple of 4")
        if self.image_size % PATCH:
            raise UserError(f"model.vision.image_size={self.image_size} is no multiple of {PATCH}")
        self.check_projection(self.width, embed_dim)

    @property
    def side(self) -> int:
        """The number of rows, and of columns, of an image's patches."""
        return self.image_size // PATCH

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks."""
        return self.side**2 + 1

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of patches, and their features."""
        return self.side**2, self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        total, side, inputs = 0, self.image_size, flop_counts.RGB
        for window, outputs in zip(WINDOWS, self.stem_widths, strict=True):
            side //= window
            total += product(side**2, window**2 * inputs, outputs)
            inputs = outputs
        total += flop_counts.transformer(self, self.tokens)
        return total + self.projection_flops(self.width, embed_dim)

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """The channels of the three convolutions."""
        return self.width // 4, self.width // 4, self.width

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size."""
        from clip_jax.models.positions import resize_grid

        table = resize_grid(
            params["positional_embedding"], self.side, image_size // PATCH, prefix=0
        )
        return {**params, "positional_embedding": table}

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared."""
        return {"interpolation": "bilinear"}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px/{PATCH} {self.layers}×{self.width}"
