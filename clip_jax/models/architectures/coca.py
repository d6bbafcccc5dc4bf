"""CoCa (Yu et al. 2022)."""

from __future__ import annotations

from typing import Any

from clip_jax.io.files import JsonObject
from clip_jax.models.architectures.sizes import BASE, LARGE
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.model_config import CLIPConfig, VisionConfig, VisionTower


def coca(
    embed_dim: int,
    vision: VisionTower,
    text: CoCaTextConfig,
    decoder: MultimodalConfig,
    **options: Any,
) -> CLIPConfig:
    """Returns a CoCa (Yu et al. 2022) as open_clip builds it.

    Args:
      embed_dim: features of an image or a text.
      vision, text, decoder: its parts.
      options: other fields of `CLIPConfig`.
    """
    options = {"activation": "gelu", **options}
    heads = (("decoder", decoder),)
    return CLIPConfig(embed_dim, vision=vision, text=text, heads=heads, **options)


def _coca(embed_dim: int, **vision: Any) -> CLIPConfig:
    shape: JsonObject = dict(width=embed_dim, layers=12, heads=embed_dim // 64)
    tower = CoCaVisionConfig(pool_width=embed_dim, **vision)
    return coca(embed_dim, tower, CoCaTextConfig(**shape), MultimodalConfig(**shape))


# CoCa: Contrastive Captioners are Image-Text Foundation Models; the sizes are open_clip's.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "coca_ViT-B-32": _coca(512, patch_size=32),
    "coca_ViT-L-14": _coca(768, patch_size=14, **LARGE),
    "coca_base": coca(
        512,
        VisionConfig(288, 18),
        CoCaTextConfig(vocab_size=64_000, **BASE),
        MultimodalConfig(**BASE),
    ),
}
