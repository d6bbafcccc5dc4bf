"""Config of the image tower of SigLIP 2 NaFlex."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import AnySizeTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.patches import PatchBudget
from clip_jax.models.tower import (
    PixelOptions,
    VisionTower,
    check_activation,
    check_blocks,
    check_layers,
)
from clip_jax.models.vision_configs import HALF


@dataclasses.dataclass(frozen=True)
class NaFlexConfig(TransformerTower, AnySizeTower, VisionTower):
    """The config of SigLIP 2's vision Transformer for images of any shape (NaFlex).

    Its input are patches, see `models.patches`. Source: Tschannen et al. 2025, section 2.4.2.

    Attributes:
      max_num_patches: the most patches of an image, whose shape is kept. It is no part of the
        parameters: 128, 256, 576, 784 and 1024 were trained.
      patch_size: the side of a patch in pixels.
      positions: the side of the square table of positions, which is resized for each image.
      activation: the activation of the MLPs; empty for that of the model.
    """

    kind: ClassVar[str] = "naflex"
    max_num_patches: int = 256
    patch_size: int = 16
    positions: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = ""
    eps: float = 1e-6
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        check_blocks("vision", self)
        check_layers("vision", self.layers, 1)
        check_activation("vision", self.activation)
        if self.width != embed_dim:
            raise UserError(
                f"a naflex has no projection: model.vision.width={self.width} must be "
                f"model.embed_dim={embed_dim}"
            )

    @property
    def patch_budget(self) -> PatchBudget:
        """The patches of an image."""
        return PatchBudget(self.patch_size, self.max_num_patches)

    @property
    def image_size(self) -> int:  # type: ignore[override]  # it follows from other fields
        """The side of a square image in pixels."""
        return self.patch_budget.side

    def sizes(self) -> dict[str, int]:
        """Returns the field that can change without other parameters: the number of patches."""
        return {"max_num_patches": self.max_num_patches}

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks, padding included."""
        return self.max_num_patches

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one image, padding included.

        Every patch has its own weights for the table of positions.
        """
        patches, width = self.max_num_patches, self.width
        inputs = self.patch_size**2 * flop_counts.RGB + self.positions**2
        pool = flop_counts.attention_pool(patches, width) + product(1, width, width)
        blocks = flop_counts.transformer(self, patches) + flop_counts.mlp(self, 1)
        return product(patches, inputs, width) + blocks + pool

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared: resized to the patches that they may have."""
        return {
            "resize": "patches",
            "interpolation": "bilinear",
            "budget": self.patch_budget,
        }

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return (
            f"{self.kind} {self.max_num_patches} patches of {self.patch_size}px "
            f"{self.layers}×{self.width}"
        )
