"""The config of EVA-CLIP's and Perception Encoder's image towers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import ProjectedTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import (
    Params,
    PixelOptions,
    VisionTower,
    check_blocks,
    check_layers,
)
from clip_jax.models.vision_configs import MEAN, STD


@dataclasses.dataclass(frozen=True)
class EvaConfig(TransformerTower, ProjectedTower, VisionTower):
    """The config of a vision Transformer of EVA's family. The defaults are the base of EVA-01.

    EVA-CLIP (Sun et al. 2023) has EVA-01 (Fang et al. 2022), EVA-02 (Fang et al. 2023) and the
    enormous EVA-02-E as image towers; Perception Encoder (Bolya et al. 2025) is of this family too.

    Attributes:
      patch_size: the side of a patch in pixels.
      class_token: whether there is a class token before the patches.
      pool: what gives the output: `class`, the class token; `map`, a learned query that attends to
        all tokens (Perception Encoder).
      pool_heads, pool_mlp_ratio: the heads and the MLP of that query's attention.
      ln_pre: whether a LayerNorm before the blocks replaces the bias of the patches' projection.
      post_norm: whether each block normalises what its two branches add (EVA-02-E), and not their
        inputs.
      swiglu: whether MLPs are gated by a SiLU, with a LayerNorm before the last layer of each
        branch (EVA-02).
      key_bias: whether keys have a bias; queries and values always have one.
      rotary: the side of the grid that defines rotary positions, see `rotary.grid_rotation`; 0 for
        none. Learned positions are added to the patches in any case.
      rotary_offset: the rotary position of the first row and of the first column.
      rotary_columns_first: whether the first half of a head's features turns by the column.
    """

    kind: ClassVar[str] = "eva"
    image_size: int = 224
    patch_size: int = 14
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    pool: str = "class"
    pool_heads: int = 8
    pool_mlp_ratio: float = 4.0
    ln_pre: bool = False
    post_norm: bool = False
    swiglu: bool = False
    key_bias: bool = False
    rotary: int = 0
    rotary_offset: float = 0.0
    rotary_columns_first: bool = False
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
        if self.pool not in ("class", "map"):
            raise UserError(f"model.vision.pool={self.pool!r:.80} must be 'class' or 'map'")
        if self.pool == "class" and not self.class_token:
            raise UserError("model.vision.pool='class' needs model.vision.class_token")
        if self.pool == "map" and self.width % self.pool_heads:
            raise UserError(
                f"model.vision.pool_heads={self.pool_heads} does not divide "
                f"model.vision.width={self.width}"
            )
        if self.rotary and self.width // self.heads % 4:
            raise UserError(
                f"model.vision.rotary needs heads of a multiple of 4 features, not "
                f"{self.width // self.heads}: model.vision.width / model.vision.heads"
            )
        self.check_projection(self.width, embed_dim)

    @property
    def pool_blocks(self) -> EvaConfig:
        """This config with the heads and the MLP of the query that pools."""
        return dataclasses.replace(self, heads=self.pool_heads, mlp_ratio=self.pool_mlp_ratio)

    @property
    def side(self) -> int:
        """The number of rows, and of columns, of an image's patches."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks."""
        return self.side**2 + self.class_token

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("projection", "pool")

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of patches, and their features."""
        return self.side**2, self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        pixels = self.patch_size**2 * flop_counts.RGB
        total = product(self.side**2, pixels, self.width)
        total += flop_counts.transformer(self, self.tokens)
        if self.swiglu:  # the gates
            total += self.layers * product(self.tokens, self.width, self.hidden_width)
        if self.pool == "map":
            total += flop_counts.attention_pool(self.tokens, self.width)
            total += product(1, self.width, self.width) + flop_counts.mlp(self.pool_blocks, 1)
        return total + self.projection_flops(self.width, embed_dim)

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size.

        Learned positions are interpolated; rotary ones are stretched to `rotary` on any grid.
        """
        from clip_jax.models.positions import resize_grid

        table, new = params["positional_embedding"], image_size // self.patch_size
        table = resize_grid(table, self.side, new, int(self.class_token))
        return {**params, "positional_embedding": table}

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared: Perception Encoder squashes them, EVA-CLIP crops."""
        return {"resize": "squash", "interpolation": "bilinear"} if self.pool == "map" else {}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px/{self.patch_size} {self.layers}×{self.width}"
