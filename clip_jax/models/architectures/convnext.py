"""ConvNeXts of timm, on which open_clip builds CLIPs; their names and sizes are timm's."""

from __future__ import annotations

from clip_jax.models.convnext_configs import ConvNeXtConfig

_DEEP = (3, 3, 27, 3)

TOWERS: dict[str, ConvNeXtConfig] = {
    name: ConvNeXtConfig(width=width, layers=layers, projection="none", eps=eps)
    for name, width, layers, eps in (
        ("convnext_tiny", 96, (3, 3, 9, 3), 1e-6),
        ("convnext_small", 96, _DEEP, 1e-6),
        ("convnext_base", 128, _DEEP, 1e-6),
        ("convnext_large", 192, _DEEP, 1e-6),
        ("convnext_xlarge", 256, _DEEP, 1e-6),
        ("convnext_xxlarge", 384, (3, 4, 30, 3), 1e-5),
    )
}
