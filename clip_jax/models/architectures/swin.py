"""The Swin Transformer on which open_clip has a CLIP; its name and sizes are timm's."""

from __future__ import annotations

from clip_jax.models.swin_configs import SwinConfig

TOWERS: dict[str, SwinConfig] = {"swin_base_patch4_window7_224": SwinConfig(projection="none")}
