"""Towers and models as plain data: importing this is cheap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from clip_jax.errors import UserError
from clip_jax.models import fields

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

MAX_LAYERS = 1024  # a file may claim any number, and every layer of it would be named

# What a model computes in. `mixed`: bfloat16 products between float32 activations.
DTYPES = ("float32", "bfloat16", "mixed")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")  # of the Transformers' MLPs


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision Transformer. Sizes in pixels.

    stem: channels of two convolutions before the patches, 0 for the paper's single projection;
      they let small data sets be learned sooner (Xiao et al. 2021).
    pool: what is read out: `class`, a token of its own; `mean`, the average of the patches; `map`,
      what a learned query attends to (SigLIP; Zhai et al. 2022, section 3).
    registers: tokens without a place that the blocks may think in (Darcet et al. 2023).
    ln_pre: whether a LayerNorm stands before the blocks (CLIP has one, SigLIP none).
    patch_bias: whether the projection of the patches has a bias.
    projection: whether a matrix leads from `width` to `embed_dim`; without, they are the same.
    ragged: whether pixels at the right and below may fill no patch and be left out.
    eps: of the LayerNorms.
    patch_dropout: the share of patches left out in training.
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
    registers: int = 0
    ln_pre: bool = True
    patch_bias: bool = False
    projection: bool = True
    ragged: bool = False
    eps: float = 1e-5
    patch_dropout: float = 0.0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def check(self, embed_dim: int) -> None:
        """Raises UserError where these sizes make no tower."""
        _check_heads("vision", self)
        _check_layers("vision", self.layers, 1)
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
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"model.vision.patch_dropout={self.patch_dropout} is not in [0, 1)")
        if not self.projection and self.width != embed_dim:
            raise UserError(
                f"without model.vision.projection, model.vision.width={self.width} must be "
                f"model.embed_dim={embed_dim}"
            )


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet (section 2.4). Sizes in pixels.

    width: channels after the stem; the last stage has 32 times as many.
    layers: bottlenecks of the four stages.
    heads: of the attention that pools the last stage.
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
        """Raises UserError where these sizes make no tower."""
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
            _check_layers("vision", depth, 1)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """EfficientNet without its head (Tan and Le 2019, table 1), as ALIGN uses it.

    width, depth: what channels and repeats of B0 are multiplied by.
    divisor: channels are rounded to multiples of it.
    stages: (kernel, stride, expansion, inputs, outputs, repeats) of each stage of B0.
    symmetric: blocks of stride 2, counted from 0, whose padding is the same on all sides; the
      others' is one less at the left and above.
    squeeze: width of the squeeze-and-excite layers, as a share of the block's inputs.
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
    eps: float = 1e-3
    momentum: float = 0.01
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def channels(self, base: int) -> int:
        """`base` channels of B0, scaled and rounded, never by more than a tenth down."""
        scaled = base * self.width
        rounded = max(self.divisor, int(scaled + self.divisor / 2) // self.divisor * self.divisor)
        return rounded if rounded >= 0.9 * scaled else rounded + self.divisor

    def repeats(self, base: int) -> int:
        """`base` blocks of B0, scaled."""
        return math.ceil(self.depth * base)

    def check(self, embed_dim: int) -> None:
        """Raises UserError where these sizes make no tower."""
        if not self.stages or any(len(s) != 6 or min(s) < 1 for s in self.stages):
            raise UserError(
                "model.vision.stages must hold (kernel, stride, expansion, inputs, outputs, "
                f"repeats) for each stage, all 1 or more, not {self.stages!r:.80}"
            )
        if len(self.stages) > 16:
            raise UserError(
                f"model.vision.stages holds {len(self.stages)} stages, at most 16 can be"
            )
        reached = self.stem
        for stage in self.stages:
            if stage[3] != reached:
                raise UserError(
                    f"model.vision.stages: {stage} takes {stage[3]} channels and is given {reached}"
                )
            reached = stage[4]
            _check_layers("vision", self.repeats(stage[5]), 1)
        last = self.channels(reached)
        if last != embed_dim:
            raise UserError(
                f"an EfficientNet of model.vision.width={self.width} gives {last} features: "
                f"set model.embed_dim={last}, not {embed_dim}"
            )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text Transformer.

    layers: 0 for a bag of words, the mean of the tokens (the paper's CBOW, section 2.3).
    causal: whether a token sees only itself and those before it.
    pool: what is read out: `end`, the largest token id of a row (CLIP), or `last`, its last place,
      whatever stands there (SigLIP).
    projection_bias: whether the projection to `embed_dim` has a bias.
    eps: of the LayerNorms.
    """

    kind: ClassVar[str] = "transformer"
    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    causal: bool = True
    pool: str = "end"
    projection_bias: bool = False
    eps: float = 1e-5

    def check(self) -> None:
        """Raises UserError where these sizes make no tower."""
        _check_layers("text", self.layers, 0)
        if self.layers:
            _check_heads("text", self)
        if self.pool not in ("end", "last"):
            raise UserError(f"model.text.pool={self.pool!r} must be 'end' or 'last'")

    @property
    def blind_to_padding(self) -> bool:
        """Whether what stands after the end of a text changes nothing."""
        return not self.layers or (self.causal and self.pool == "end")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """BERT (Devlin et al. 2018), read out at its first token, as ALIGN uses it.

    positions: length of the table of positions; texts have `context_length` tokens.
    token_types: length of the table of segments, of which only the first is used.
    pad_id: the token that fills a row up; nothing attends to it.
    pooler: whether BERT's tanh layer is carried along; ALIGN does not use it, its files hold it.
    """

    kind: ClassVar[str] = "bert"
    vocab_size: int = 30522
    context_length: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: int = 512
    token_types: int = 2
    pad_id: int = 0
    pooler: bool = True
    projection_bias: bool = True
    eps: float = 1e-12

    def check(self) -> None:
        """Raises UserError where these sizes make no tower."""
        _check_heads("text", self)
        _check_layers("text", self.layers, 1)
        if self.context_length > self.positions:
            raise UserError(
                f"model.text.context_length={self.context_length} is above "
                f"model.text.positions={self.positions}"
            )

    @property
    def blind_to_padding(self) -> bool:
        """Whether what stands after the end of a text changes nothing."""
        return True


def _check_layers(side: str, layers: int, least: int) -> None:
    if not least <= layers <= MAX_LAYERS:
        raise UserError(f"model.{side}.layers={layers} must be from {least} to {MAX_LAYERS}")


def _check_heads(side: str, tower: VisionConfig | TextConfig | BertConfig) -> None:
    if tower.heads < 1 or tower.width % tower.heads:
        raise UserError(
            f"model.{side}.heads={tower.heads} does not divide model.{side}.width={tower.width}"
        )
    if round(tower.width * tower.mlp_ratio) < 1:
        raise UserError(f"model.{side}.mlp_ratio={tower.mlp_ratio} leaves its MLPs no width")


ImageTowerConfig = VisionConfig | ResNetConfig | EfficientNetConfig
TextTowerConfig = TextConfig | BertConfig
_IMAGE_TOWERS: dict[str, type] = {
    c.kind: c for c in (VisionConfig, ResNetConfig, EfficientNetConfig)
}
_TEXT_TOWERS: dict[str, type] = {c.kind: c for c in (TextConfig, BertConfig)}


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the space they share.

    activation: of the Transformers' MLPs.
    temperature: where the learned temperature starts; the logit scale is its inverse.
    log_scale: whether the logarithm of the logit scale is what is learned (CLIP), or the
      temperature itself (ALIGN).
    max_logit_scale: what training keeps the logit scale below; 0 for no bound.
    logit_bias: where the learned bias of a sigmoid loss starts; None for no bias.
    """

    embed_dim: int = 512
    activation: str = "quick_gelu"
    temperature: float = 0.07
    log_scale: bool = True
    max_logit_scale: float = 100.0
    logit_bias: float | None = None
    vision: ImageTowerConfig = dataclasses.field(default_factory=VisionConfig)
    text: TextTowerConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        self.vision.check(self.embed_dim)
        self.text.check()
        if self.max_logit_scale and not self.log_scale:
            raise UserError("model.max_logit_scale needs model.log_scale: set it to 0")
        if not self.temperature > 0 or self.max_logit_scale < 0:
            raise UserError(
                f"model.temperature={self.temperature} must be above 0 and "
                f"model.max_logit_scale={self.max_logit_scale} at least 0 (no bound)"
            )

    @classmethod
    def from_dict(cls, values: Any) -> CLIPConfig:
        """The reverse of `to_dict`, from a config file's or a checkpoint's `model`.

        Raises:
          UserError: a value is missing, unknown, of another type or size than it can be.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"model={values!r:.80} must be an object")
        values = {key: _tuples(value) for key, value in values.items()}
        towers = {}
        for side, kinds in (("vision", _IMAGE_TOWERS), ("text", _TEXT_TOWERS)):
            if side not in values:
                raise UserError(f"model.{side} is missing: the config of a tower")
            towers[side] = _tower(side, values.pop(side), kinds)
        values = fields.checked(cls, values, "model.")
        if values.get("activation", "gelu") not in ACTIVATIONS:
            raise UserError(
                f"model.activation={values['activation']!r:.80} must be one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        return cls(**towers, **values)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries; the `kind` of each tower says what it is."""
        values = dataclasses.asdict(self)
        for side, tower in (("vision", self.vision), ("text", self.text)):
            values[side] = {"kind": tower.kind, **values[side]}
        return values


def _tower(side: str, values: Any, kinds: Mapping[str, type]) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"model.{side}={values!r:.80} must be an object")
    values = {k: _tuples(v) for k, v in values.items()}
    kind = values.pop("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"model.{side}.kind={kind!r:.80} must be one of {', '.join(kinds)}")
    return kinds[kind](**fields.checked(kinds[kind], values, f"model.{side}."))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
