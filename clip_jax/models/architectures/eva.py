"""Image towers of timm for EVA-CLIP and Perception Encoder, by the names of timm's eva.py."""

from __future__ import annotations

from typing import Any

from clip_jax.models.architectures.sizes import BASE, LARGE
from clip_jax.models.eva_configs import EvaConfig
from clip_jax.models.vision_configs import HALF

_GIANT = EvaConfig(width=1408, layers=40, heads=16, mlp_ratio=6144 / 1408)
_EVA02: dict[str, Any] = dict(swiglu=True, rotary=16)  # a third of the MLPs' width is the gate's


def _perception(image_size: int, patch_size: int, **shape: Any) -> EvaConfig:
    """Returns a tower of Perception Encoder, which turns by the places of its own grid."""
    return EvaConfig(
        image_size,
        patch_size,
        pool="map",
        ln_pre=True,
        key_bias=True,
        rotary=image_size // patch_size,
        rotary_columns_first=True,
        eps=1e-5,
        mean=HALF,
        std=HALF,
        **{"rotary_offset": 1.0, **shape},
    )


TOWERS: dict[str, EvaConfig] = {
    "eva_giant_patch14_224": _GIANT,
    "eva_giant_patch14_clip_224": _GIANT,
    "eva02_base_patch16_clip_224": EvaConfig(patch_size=16, mlp_ratio=2048 / 768, **BASE, **_EVA02),
    "eva02_large_patch14_clip_224": EvaConfig(mlp_ratio=2730 / 1024, **LARGE, **_EVA02),
    "eva02_large_patch14_clip_336": EvaConfig(336, mlp_ratio=2730 / 1024, **LARGE, **_EVA02),
    "eva02_enormous_patch14_clip_224": EvaConfig(
        width=1792, layers=64, heads=16, mlp_ratio=15360 / 1792, post_norm=True
    ),
    "vit_pe_core_tiny_patch16_384": _perception(384, 16, width=192, layers=12, heads=3),
    "vit_pe_core_small_patch16_384": _perception(384, 16, width=384, layers=12, heads=6),
    "vit_pe_core_base_patch16_224": _perception(224, 16, **BASE),
    "vit_pe_core_large_patch14_336": _perception(336, 14, **LARGE),
    "vit_pe_core_gigantic_patch14_448": _perception(
        448,
        14,
        width=1536,
        layers=50,
        heads=16,
        mlp_ratio=8960 / 1536,
        class_token=False,
        rotary_offset=0.0,
    ),
}
