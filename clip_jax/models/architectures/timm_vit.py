"""Vision Transformers of timm, on which open_clip builds SigLIP and MobileCLIP2-L.

Their names, sizes and activations are those of timm's vision_transformer.py.
"""

from __future__ import annotations

from clip_jax.io.files import JsonObject
from clip_jax.models.architectures.sizes import BASE, GIANT, LARGE, SO400M
from clip_jax.models.model_config import HALF, VisionConfig
from clip_jax.models.relpos_vit_configs import RelPosViTConfig


def _siglip(image_size: int, patch_size: int, activation: str, shape: JsonObject) -> VisionConfig:
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        pool="map",
        ln_pre=False,
        patch_bias=True,
        projection=False,
        ragged=image_size % patch_size > 0,
        activation=activation,
        eps=1e-6,
        mean=HALF,
        std=HALF,
        **shape,
    )


_SIGLIP: dict[tuple[str, int], tuple[JsonObject, tuple[int, ...]]] = {
    ("base", 32): (BASE, (256,)),
    ("base", 16): (BASE, (224, 256, 384, 512)),
    ("large", 16): (LARGE, (256, 384, 512)),
    ("so400m", 14): (SO400M, (224, 378, 384)),
    ("so400m", 16): (SO400M, (256, 384, 512)),
    ("giantopt", 16): (GIANT, (256, 384)),
}
# Those that timm added for SigLIP 2 have the approximate GELU; SigLIP 2 uses the older ones, too.
_TANH = (
    *("vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512"),
    *("vit_so400m_patch16_siglip_256", "vit_so400m_patch16_siglip_384"),
    *("vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256"),
    "vit_giantopt_patch16_siglip_384",
)


def _siglip_towers() -> dict[str, VisionConfig]:
    towers = {}
    for (kind, patch_size), (shape, sizes) in _SIGLIP.items():
        for size in sizes:
            name = f"vit_{kind}_patch{patch_size}_siglip_{size}"
            activation = "gelu_tanh" if name in _TANH else "gelu"
            towers[name] = _siglip(size, patch_size, activation, shape)
    return towers


TOWERS: dict[str, VisionConfig | RelPosViTConfig] = {
    **_siglip_towers(),
    "vit_large_patch14_clip_224": VisionConfig(
        patch_size=14, projection=False, activation="gelu", **LARGE
    ),
    "vit_relpos_medium_patch16_cls_224": RelPosViTConfig(),
    "vit_medium_patch16_gap_256": VisionConfig(
        image_size=256,
        patch_size=16,
        width=512,
        layers=12,
        heads=8,
        pool="mean",
        ln_before_pool=True,
        ln_pre=False,
        layer_scale=1e-6,
        attention_bias=False,
        patch_bias=True,
        projection=False,
        activation="gelu",
        eps=1e-6,
    ),
}
