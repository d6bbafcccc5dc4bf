"""ViTamins (Chen et al. 2024); their names and sizes are timm's."""

from __future__ import annotations

from clip_jax.io.files import JsonObject
from clip_jax.models.vitamin_configs import ViTaminConfig

_LARGE: JsonObject = dict(stem=160, width=1024, layers=31, heads=16)
_SIZES: dict[str, tuple[JsonObject, tuple[int, ...]]] = {
    "small": (dict(stem=64, width=384, layers=14, heads=6), (224,)),
    "base": (dict(stem=128, width=768, layers=14, heads=12), (224,)),
    "large": (_LARGE, (224, 256, 336, 384)),
    "large2": (_LARGE, (224, 256, 336, 384)),
    "xlarge": (
        dict(stem=192, width=1152, layers=32, heads=16, positions=False),
        (256, 336, 384),
    ),
}

TOWERS: dict[str, ViTaminConfig] = {
    f"vitamin_{name}_{size}": ViTaminConfig(image_size=size, projection="none", **shape)
    for name, (shape, sizes) in _SIZES.items()
    for size in sizes
}
