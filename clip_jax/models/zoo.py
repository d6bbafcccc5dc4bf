"""Architectures by the names people know, as plain data: importing this is cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# What a model computes in. `mixed`: bfloat16 products between float32 activations.
DTYPES = ("float32", "bfloat16", "mixed")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision Transformer. Sizes in pixels.

    stem: channels of two convolutions before the patches, 0 for the paper's single projection;
      they let small data sets be learned sooner (Xiao et al. 2021).
    pool: what is read out: `class`, a token of its own, or `mean`, the average of the patches.
    patch_dropout: the share of patches left out in training.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    stem: int = 0
    pool: str = "class"
    patch_dropout: float = 0.0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A causal text Transformer, read out at the largest token id (the end of the text).

    layers: 0 for a bag of words, the mean of the tokens (the paper's CBOW, section 2.3).
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the space they share."""

    embed_dim: int = 512
    activation: str = "quick_gelu"
    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        for side, tower in (("vision", self.vision), ("text", self.text)):
            if tower.layers and tower.width % tower.heads:
                raise UserError(
                    f"model.{side}.heads={tower.heads} does not divide "
                    f"model.{side}.width={tower.width}"
                )
        if self.vision.layers < 1 or self.text.layers < 0:
            raise UserError(
                f"model.vision.layers={self.vision.layers} must be at least 1 and "
                f"model.text.layers={self.text.layers} at least 0 (a bag of words)"
            )
        if self.vision.image_size % self.vision.patch_size:
            raise UserError(
                f"model.vision.patch_size={self.vision.patch_size} does not divide "
                f"model.vision.image_size={self.vision.image_size}"
            )
        if self.vision.stem and self.vision.patch_size % 2:
            raise UserError(
                f"model.vision.stem needs an even model.vision.patch_size, not "
                f"{self.vision.patch_size}"
            )
        if self.vision.pool not in ("class", "mean"):
            raise UserError(f"model.vision.pool={self.vision.pool!r} must be 'class' or 'mean'")
        if not 0 <= self.vision.patch_dropout < 1:
            raise UserError(
                f"model.vision.patch_dropout={self.vision.patch_dropout} is not in [0, 1)"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """The reverse of `dataclasses.asdict`, from a config file's or a checkpoint's `model`."""
        values = dict(values)
        vision: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("vision").items()
        }
        return cls(vision=VisionConfig(**vision), text=TextConfig(**values.pop("text")), **values)


def _vit(embed_dim: int, vision: dict[str, Any], text: dict[str, Any]) -> CLIPConfig:
    return CLIPConfig(embed_dim, vision=VisionConfig(**vision), text=TextConfig(**text))


_BASE = dict(width=768, layers=12, heads=12)
_LARGE = dict(patch_size=14, width=1024, layers=24, heads=16)
_TEXT_512 = dict(width=512, heads=8)
_TEXT_768 = dict(width=768, heads=12)

# Learning Transferable Visual Models From Natural Language Supervision, tables 19 and 20.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "ViT-B/32": _vit(512, dict(patch_size=32, **_BASE), _TEXT_512),
    "ViT-B/16": _vit(512, dict(patch_size=16, **_BASE), _TEXT_512),
    "ViT-L/14": _vit(768, _LARGE, _TEXT_768),
    "ViT-L/14@336px": _vit(768, dict(image_size=336, **_LARGE), _TEXT_768),
}


def architecture(name: str) -> dict[str, Any]:
    """The architecture called `name` as nested dictionaries, ready for a config's `model`."""
    if name not in ARCHITECTURES:
        raise UserError(f"unknown model {name!r}; known: {', '.join(ARCHITECTURES)}")
    return dataclasses.asdict(ARCHITECTURES[name])


def name_of(config: CLIPConfig) -> str | None:
    """The name under which `config` is known, or None."""
    plain = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, patch_dropout=0.0)
    )
    return next((name for name, known in ARCHITECTURES.items() if known == plain), None)
