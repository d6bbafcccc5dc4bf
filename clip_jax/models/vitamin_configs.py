"""The config of ViTamin."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import ProjectedTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import Params, VisionTower, check_blocks, check_layers
from clip_jax.models.vision_configs import MEAN, STD

PATCH = 16  # pixels a side of what becomes one token
EXPANSION = 4  # of the channels inside a block of convolutions


@dataclasses.dataclass(frozen=True)
class ViTaminConfig(TransformerTower, ProjectedTower, VisionTower):
    """The config of a ViTamin (Chen et al. 2024): stages of convolutions, then a Transformer.

    The defaults are the small one's.

    Attributes:
      stem: the channels of the first stage of convolutions; the second has twice as many.
      stem_layers: the number of blocks of each of the two stages.
      positions: whether learned positions are added to the tokens.
      projection: from the pooled features to `embed_dim`: `none`, `linear` or `mlp`.
      projection_bias: whether a `linear` projection has a bias.
    """

    kind: ClassVar[str] = "vitamin"
    image_size: int = 224
    width: int = 384
    layers: int = 14
    heads: int = 6
    mlp_ratio: float = 2.0
    stem: int = 64
    stem_layers: tuple[int, ...] = (2, 4)
    positions: bool = True
    projection: str = "linear"
    projection_bias: bool = False
    eps: float = 1e-6
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        check_blocks("vision", self)
        check_layers("vision", self.layers, 1)
        if self.image_size % PATCH:
            raise UserError(f"model.vision.image_size={self.image_size} is no multiple of {PATCH}")
        if not self.stem:
            raise UserError("model.vision.stem=0 leaves a vitamin no channels before its blocks")
        if len(self.stem_layers) != 2:
            raise UserError(
                f"model.vision.stem_layers={self.stem_layers} must be the depths of two stages"
            )
        for depth in self.stem_layers:
            check_layers("vision", depth, 1, "stem_layers")
        self.check_projection(self.width, embed_dim)

    @property
    def side(self) -> int:
        """The number of rows, and of columns, of an image's tokens."""
        return self.image_size // PATCH

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks."""
        return self.side**2

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of tokens, and their features."""
        return self.tokens, self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        tokens, width = self.tokens, self.width
        total = self._convolution_flops() + flop_counts.transformer(self, tokens)
        total += self.layers * product(tokens, width, self.hidden_width)  # the gates
        return total + self.projection_flops(width, embed_dim)

    def _convolution_flops(self) -> int:
        """Returns the FLOPs from pixels to tokens."""
        places, inputs = (8 * self.side) ** 2, self.stem
        total = product(places, 9 * (flop_counts.RGB + inputs), inputs)
        for outputs, depth in zip((self.stem, 2 * self.stem), self.stem_layers, strict=True):
            hidden = EXPANSION * outputs
            total += product(places, inputs, hidden)  # before the stride of the first block
            places //= 4
            total += (depth - 1) * product(places, outputs, hidden)
            total += depth * (product(places, 9, hidden) + product(places, hidden, outputs))
            if inputs != outputs:
                total += product(places, inputs, outputs)
            inputs = outputs
        return total + product(self.tokens, 9 * inputs, self.width)

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size."""
        if not self.positions:
            return params
        from clip_jax.models.positions import resize_grid

        table = params["positional_embedding"]
        table = resize_grid(table, self.side, image_size // PATCH, 0)
        return {**params, "positional_embedding": table}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px {self.layers}×{self.width}"
