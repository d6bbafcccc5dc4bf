"""SigLIP (Zhai et al. 2023)."""

from __future__ import annotations

from typing import Any

from clip_jax.io.files import JsonObject
from clip_jax.models.architectures.sizes import BASE, GIANT, LARGE, SO400M
from clip_jax.models.model_config import HALF, CLIPConfig, TextConfig, VisionConfig, VisionTower
from clip_jax.models.naflex_configs import NaFlexConfig


def siglip(
    activation: str,
    vision: JsonObject,
    text: JsonObject,
    *,
    embed_dim: int | None = None,
    logit_bias: float = -10.0,
) -> CLIPConfig:
    """Returns a SigLIP (Zhai et al. 2023).

    Its image tower has attention pooling, and its text tower attends to padding.

    Args:
      activation: the activation of the MLPs.
      vision, text: fields of `VisionConfig`, or without an `image_size` of `NaFlexConfig`, and of
        `TextConfig`.
      embed_dim: features of an image or a text. None: the vision tower's width, without a
        projection between the two.
      logit_bias: the initial value of the learned bias.
    """
    if "image_size" in vision:
        image: VisionTower = VisionConfig(
            pool="map",
            ln_pre=False,
            patch_bias=True,
            projection=False,
            ragged=vision["image_size"] % vision["patch_size"] > 0,
            mean=HALF,
            std=HALF,
            **vision,
        )
    else:
        image = NaFlexConfig(**vision)
    return CLIPConfig(
        vision["width"] if embed_dim is None else embed_dim,
        activation,
        temperature=0.1,
        max_logit_scale=0.0,
        logit_bias=logit_bias,
        vision=image,
        text=TextConfig(**{"causal": False, "pool": "last", "projection_bias": True, **text}),
    )


# SigLIP 2's names: the size and the patch in transformers' and in ours, and the sides of images.
SIGLIP2 = (
    ("base", "patch32", "b32", (256,)),
    ("base", "patch16", "b16", (224, 256, 384, 512)),
    ("large", "patch16", "l16", (256, 384, 512)),
    ("so400m", "patch14", "so400m14", (224, 384)),
    ("so400m", "patch16", "so400m16", (256, 384, 512)),
    ("giant-opt", "patch16", "giantopt16", (256, 384)),
)
_SHAPES = {"base": BASE, "large": LARGE, "so400m": SO400M, "giant-opt": GIANT}


NAFLEX = (("base", "patch16", "b16"), ("so400m", "patch16", "so400m16"))


def _siglip2() -> dict[str, CLIPConfig]:
    """Returns the models of SigLIP 2 with images of one size; a giant's texts are so400m's."""
    models = {}
    for size, patch, short, sides in SIGLIP2:
        shape = _SHAPES[size]
        text = SO400M if size == "giant-opt" else shape
        patch_size = int(patch.removeprefix("patch"))
        for side in sides:
            models[f"siglip2-{short}-{side}"] = siglip(
                "gelu_tanh",
                dict(image_size=side, patch_size=patch_size, eps=1e-6, **shape),
                dict(vocab_size=256_000, context_length=64, eps=1e-6, **text),
            )
    return models


def _naflex() -> dict[str, CLIPConfig]:
    """Returns the models of SigLIP 2 that keep the shapes of images."""
    return {
        f"siglip2-{short}-naflex": siglip(
            "gelu_tanh",
            dict(eps=1e-6, **_SHAPES[size]),
            dict(vocab_size=256_000, context_length=64, eps=1e-6, **_SHAPES[size]),
        )
        for size, _, short in NAFLEX
    }


def _siglip(
    image_size: int, patch_size: int, *, vocab_size: int = 32_000, **shape: Any
) -> CLIPConfig:
    return siglip(
        "gelu_tanh",
        dict(image_size=image_size, patch_size=patch_size, eps=1e-6, **shape),
        dict(vocab_size=vocab_size, context_length=64, eps=1e-6, **shape),
    )


# Sigmoid Loss for Language Image Pre-Training; the names are those of the released files.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "siglip-b16": _siglip(224, 16, **BASE),
    "siglip-b16-256": _siglip(256, 16, **BASE),
    "siglip-b16-384": _siglip(384, 16, **BASE),
    "siglip-b16-512": _siglip(512, 16, **BASE),
    "siglip-b16-256-i18n": _siglip(256, 16, vocab_size=250_000, **BASE),
    "siglip-l16-256": _siglip(256, 16, **LARGE),
    "siglip-l16-384": _siglip(384, 16, **LARGE),
    "siglip-so400m14": _siglip(224, 14, **SO400M),
    "siglip-so400m14-384": _siglip(384, 14, **SO400M),
    # SigLIP 2: Multilingual Vision-Language Encoders (Tschannen et al. 2025).
    **_siglip2(),
    **_naflex(),
}
