"""Converts architectures from and to the model_cfg of open_clip."""

from clip_jax.weights.configs.open_clip.reading import from_open_clip
from clip_jax.weights.configs.open_clip.writing import to_open_clip

__all__ = ["from_open_clip", "to_open_clip"]
