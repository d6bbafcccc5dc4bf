"""Image towers of timm for MobileCLIP and MobileCLIP 2, by timm's names."""

from __future__ import annotations

from typing import Any

from clip_jax.models.fastvit_configs import FastViTConfig
from clip_jax.models.mci_vit_configs import MCiViTConfig

_PLAIN: dict[str, Any] = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# The two of MobileCLIP 2 have a fifth stage.
_FIVE: dict[str, Any] = dict(
    mlp_ratio=4.0, attention_stages=2, squeeze_stages=0, layer_norm=True, stem_scale=False
)

TOWERS: dict[str, FastViTConfig | MCiViTConfig] = {
    "fastvit_mci0": FastViTConfig(**_PLAIN),
    "fastvit_mci1": FastViTConfig(layers=(4, 12, 20, 4), **_PLAIN),
    "fastvit_mci2": FastViTConfig(width=80, layers=(4, 12, 24, 4), **_PLAIN),
    "fastvit_mci3": FastViTConfig(width=96, layers=(2, 12, 24, 4, 2), **_FIVE),
    "fastvit_mci4": FastViTConfig(width=128, layers=(2, 12, 24, 4, 4), **_FIVE),
    "vit_base_mci_224": MCiViTConfig(**_PLAIN),
}
