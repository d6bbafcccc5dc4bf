"""Configs of the image towers."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import AnySizeTower, BuiltInTower, TransformerTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import (
    Params,
    PixelOptions,
    VisionTower,
    check_activation,
    check_blocks,
    check_layers,
)

# By which CLIP's images are normalised, of R, G and B in 0…1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP's and ALIGN's mean and deviation


@dataclasses.dataclass(frozen=True)
class VisionConfig(TransformerTower, VisionTower):
    """The config of a vision Transformer.

    Attributes:
      patch_size: the side of a patch in pixels.
      stem: the channels of two convolutions before the patches, 0 for the paper's single
        projection. Models of small data sets learn faster with them (Xiao et al. 2021).
      pool: what gives the output: `class`, a class token; `mean`, the mean of the patches; `map`, a
        learned query that attends to the patches (SigLIP; Zhai et al. 2022, section 3).
      unpooled_class: whether there is a class token that `pool="mean"` leaves out (CLIPA).
      ln_before_pool: whether the last LayerNorm comes before the mean of the patches, not after it.
      registers: the number of extra tokens without a position (Darcet et al. 2023).
      ln_pre: whether there is a LayerNorm before the blocks (in CLIP, not in SigLIP).
      layer_scale: above 0: the first value of learned gains of each block's two branches.
      attention_bias: whether queries, keys and values have a bias.
      patch_bias: whether the projection of the patches has a bias.
      projection: whether a matrix projects `width` to `embed_dim`; without it they are equal.
      projection_bias: whether this projection has a bias.
      activation: the activation of the MLPs; empty for that of the model.
      ragged: whether pixels at the right and bottom edges that fill no patch are dropped.
      patch_dropout: the share of patches dropped in training.
    """

    kind: ClassVar[str] = "vit"
    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    stem: int = 0
    pool: str = "class"
    unpooled_class: bool = False
    ln_before_pool: bool = False
    registers: int = 0
    ln_pre: bool = True
    layer_scale: float = 0.0
    attention_bias: bool = True
    patch_bias: bool = False
    projection: bool = True
    projection_bias: bool = False
    activation: str = ""
    ragged: bool = False
    eps: float = 1e-5
    patch_dropout: float = 0.0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        check_blocks("vision", self)
        check_layers("vision", self.layers, 1)
        if not 1 <= self.patch_size <= self.image_size:
            raise UserError(
                f"model.vision.patch_size={self.patch_size} must be from 1 to "
                f"model.vision.image_size={self.image_size}"
            )
        if self.image_size % self.patch_size and not self.ragged:
            raise UserError(
                f"model.vision.patch_size={self.patch_size} does not divide "
                f"model.vision.image_size={self.image_size}"
            )
        if self.stem and self.patch_size % 2:
            raise UserError(
                f"model.vision.stem needs an even model.vision.patch_size, not {self.patch_size}"
            )
        if self.pool not in ("class", "mean", "map"):
            raise UserError(f"model.vision.pool={self.pool!r} must be 'class', 'mean' or 'map'")
        if self.pool != "mean" and (self.unpooled_class or self.ln_before_pool):
            raise UserError(
                f"model.vision.pool={self.pool!r}: .unpooled_class and .ln_before_pool need 'mean'"
            )
        check_activation("vision", self.activation)
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"model.vision.patch_dropout={self.patch_dropout} is not in [0, 1)")
        if not self.projection and self.width != embed_dim:
            raise UserError(
                f"without model.vision.projection, model.vision.width={self.width} must be "
                f"model.embed_dim={embed_dim}"
            )

    @property
    def class_tokens(self) -> int:
        """The number of class tokens, 0 or 1."""
        return int(self.pool == "class" or self.unpooled_class)

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("projection", "pool")

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of patches that training keeps, and their features."""
        return self._kept_patches, self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        width, patches = self.width, self._kept_patches
        total = self._patch_flops() + flop_counts.transformer(self, self.tokens)
        if self.pool == "map":  # attends to the patches only
            total += flop_counts.attention_pool(patches, width)
            total += product(1, width, width) + flop_counts.mlp(self, 1)
        return total + (product(1, width, embed_dim) if self.projection else 0)

    def _patch_flops(self) -> int:
        """Returns the FLOPs from pixels to patches of the blocks' width."""
        patches = (self.image_size // self.patch_size) ** 2
        pixels = self.patch_size**2 * flop_counts.RGB
        if not self.stem:
            return product(patches, pixels, self.width)
        places = (self.image_size // (self.patch_size // 2)) ** 2
        convolutions = product(places, pixels + 9 * self.stem, self.stem)
        return convolutions + product(patches, 4 * self.stem, self.width)

    @property
    def _kept_patches(self) -> int:
        """Patches that patch dropout leaves in training."""
        patches = (self.image_size // self.patch_size) ** 2
        return max(1, round(patches * (1 - self.patch_dropout)))

    @property
    def tokens(self) -> int:
        """The number of tokens of one image in the blocks during training."""
        return self._kept_patches + self.class_tokens + self.registers

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size."""
        from clip_jax.models.positions import resize_grid

        old, new = self.image_size // self.patch_size, image_size // self.patch_size
        table = resize_grid(params["positional_embedding"], old, new, self.class_tokens)
        return {**params, "positional_embedding": table}

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared: SigLIP squashes them, CLIP cuts out their centres."""
        return {"resize": "squash"} if self.pool == "map" else {}

    def without_dropout(self) -> VisionTower:
        """Returns the same tower without patch dropout."""
        return dataclasses.replace(self, patch_dropout=0.0)

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px/{self.patch_size} {self.layers}×{self.width}"


@dataclasses.dataclass(frozen=True)
class ResNetConfig(BuiltInTower, VisionTower):
    """The config of CLIP's modified ResNet (section 2.4).

    Attributes:
      width: the number of channels after the stem; the last stage has 32 times as many.
      layers: the number of bottlenecks of each of the four stages.
      heads: the heads of the attention that pools the last stage.
      eps: the number that batch normalizations add to the variance.
      momentum: the weight of a batch in the running statistics.
    """

    kind: ClassVar[str] = "resnet"
    image_size: int = 224
    width: int = 64
    layers: tuple[int, ...] = (3, 4, 6, 3)
    heads: int = 32
    eps: float = 1e-5
    momentum: float = 0.1
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together."""
        if self.image_size % 32:
            raise UserError(f"model.vision.image_size={self.image_size} is no multiple of 32")
        if self.heads < 1 or 32 * self.width % self.heads or self.width % 2:
            raise UserError(
                f"model.vision.heads={self.heads} does not divide 32 × "
                f"model.vision.width={self.width}, which must be even"
            )
        if len(self.layers) != 4:
            raise UserError(f"model.vision.layers={self.layers} must be the depths of four stages")
        for depth in self.layers:
            check_layers("vision", depth, 1)

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("pool",)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of the last stage, and their channels."""
        return (self.image_size // 32) ** 2, 32 * self.width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        width, side = self.width, self.image_size // 2
        half = width // 2
        total = product(side**2, 9 * flop_counts.RGB, half)
        total += product(side**2, 9 * half, half + width)
        side, inputs = side // 2, width
        for stage, depth in enumerate(self.layers):
            planes = width * 2**stage
            outputs = 4 * planes
            for block in range(depth):
                stride = 2 if stage and not block else 1
                total += product(side**2, inputs + 9 * planes, planes)
                side //= stride  # a pool between the second convolution and the third
                total += product(side**2, planes, outputs)
                if stride > 1 or inputs != outputs:
                    total += product(side**2, inputs, outputs)
                inputs = outputs
        pool = flop_counts.attention_pool(side**2 + 1, inputs)
        return total + pool + product(1, inputs, embed_dim)

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size."""
        from clip_jax.models.positions import resize_grid

        pool = params["pool"]
        table = pool["positional_embedding"]
        table = resize_grid(table, self.image_size // 32, image_size // 32, 1)
        return {**params, "pool": {**pool, "positional_embedding": table}}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px {'-'.join(map(str, self.layers))}×{self.width}"


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(AnySizeTower, VisionTower):
    """The config of an EfficientNet (Tan and Le 2019, table 1). The defaults are ALIGN's.

    Attributes:
      width: multiplier of the channels of B0.
      depth: multiplier of the repeats of B0.
      divisor: channels are rounded to multiples of it.
      stem: the channels of the first convolution of B0.
      stages: (kernel, stride, expansion, inputs, outputs, repeats) of each stage of B0.
      symmetric: the blocks of stride 2, counted from 0, with the same padding on all sides. The
        others have one row less at the top and one column less at the left.
      squeeze: width of the squeeze-and-excite layers, as a share of the block's inputs; 0 for none
        (EfficientNet-Lite).
      activation: `silu`, or `relu6` (EfficientNet-Lite).
      head: the channels of a 1×1 convolution before the mean over all places; 0 for none.
      projection: whether a matrix projects the features to `embed_dim`; without it they are equal.
      eps: the number that batch normalizations add to the variance.
      momentum: the weight of a batch in the running statistics.
    """

    kind: ClassVar[str] = "efficientnet"
    image_size: int = 289
    width: float = 2.0
    depth: float = 3.1
    divisor: int = 8
    stem: int = 32
    stages: tuple[tuple[int, ...], ...] = (
        (3, 1, 1, 32, 16, 1),
        (3, 2, 6, 16, 24, 2),
        (5, 2, 6, 24, 40, 2),
        (3, 2, 6, 40, 80, 3),
        (5, 1, 6, 80, 112, 3),
        (5, 2, 6, 112, 192, 4),
        (3, 1, 6, 192, 320, 1),
    )
    symmetric: tuple[int, ...] = ()
    squeeze: float = 0.25
    activation: str = "silu"
    head: int = 0
    projection: bool = False
    eps: float = 1e-3
    momentum: float = 0.01
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def channels(self, base: int) -> int:
        """Returns the number of channels where B0 has `base`.

        It is scaled by `width` and rounded, by at most a tenth down.
        """
        scaled = base * self.width
        rounded = max(self.divisor, int(scaled + self.divisor / 2) // self.divisor * self.divisor)
        return rounded if rounded >= 0.9 * scaled else rounded + self.divisor

    def repeats(self, base: int) -> int:
        """Returns the number of blocks where B0 has `base`."""
        return math.ceil(self.depth * base)

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        if not self.stages or any(len(s) != 6 or min(s) < 1 for s in self.stages):
            raise UserError(
                "model.vision.stages must hold (kernel, stride, expansion, inputs, outputs, "
                f"repeats) for each stage, all 1 or more, not {self.stages!r:.80}"
            )
        if len(self.stages) > 16:
            raise UserError(
                f"model.vision.stages holds {len(self.stages)} stages, at most 16 can be"
            )
        channels = self.stem
        for stage in self.stages:
            if stage[3] != channels:
                raise UserError(
                    f"model.vision.stages: {stage} takes {stage[3]} channels and is given "
                    f"{channels}"
                )
            channels = stage[4]
            check_layers("vision", self.repeats(stage[5]), 1)
        if self.activation not in ("silu", "relu6"):
            raise UserError(
                f"model.vision.activation={self.activation!r} must be 'silu' or 'relu6'"
            )
        if self.features != embed_dim and not self.projection:
            raise UserError(
                f"an EfficientNet of model.vision.width={self.width} gives {self.features} "
                f"features: set model.embed_dim={self.features}, not {embed_dim}, or "
                "model.vision.projection=True"
            )

    @property
    def features(self) -> int:
        """The number of features before the projection."""
        return self.head or self.channels(self.stages[-1][4])

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("projection",)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of the last stage, and their features."""
        side, blocks = flop_counts.convolved_side(self.image_size, 3, 2, 1), 0
        for size, stride, _, _, _, repeats in self.stages:
            even = stride == 1 or blocks in self.symmetric
            padding = 2 * (size // 2) - (not even)
            side = flop_counts.convolved_side(side, size, stride, padding)
            blocks += self.repeats(repeats)
        return side**2, self.features

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image."""
        side = flop_counts.convolved_side(self.image_size, 3, 2, 1)
        total = product(side**2, 9 * flop_counts.RGB, self.channels(self.stem))
        blocks = 0
        for size, stride, expansion, inputs, outputs, repeats in self.stages:
            inputs, outputs = self.channels(inputs), self.channels(outputs)
            for block in range(self.repeats(repeats)):
                if block:
                    stride, inputs = 1, outputs
                hidden = inputs * expansion
                squeezed = max(1, int(inputs * self.squeeze)) if self.squeeze else 0
                if expansion > 1:
                    total += product(side**2, inputs, hidden)
                even = stride == 1 or blocks in self.symmetric
                padding = 2 * (size // 2) - (not even)
                side = flop_counts.convolved_side(side, size, stride, padding)
                total += product(side**2, size**2, hidden)  # depthwise
                total += 2 * product(1, hidden, squeezed) + product(side**2, hidden, outputs)
                blocks += 1
        total += product(side**2, outputs, self.head)
        return total + (product(1, self.features, embed_dim) if self.projection else 0)

    def preprocess(self) -> PixelOptions:
        """Returns how images are prepared: ALIGN squashes them and cuts out the centre.

        EfficientNet-Lite keeps their proportions, and cuts off 16 pixels a side.
        """
        if not self.squeeze:
            return {"resize_size": self.image_size + 32, "interpolation": "bicubic"}
        side = round(self.image_size * 346 / 289)
        return {"resize": "squash", "resize_size": side, "interpolation": "bilinear"}

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{self.kind} {self.image_size}px {self.depth}×{self.width}"
