"""Converts architectures from and to the JSON of open_clip and transformers.

Such files are untrusted: every value is checked for its type and size, and features that we do not
have are refused by name.
"""

from clip_jax.weights.configs.essence import differences, essence, with_normalization
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.hugging_face import from_hugging_face, to_hugging_face
from clip_jax.weights.configs.open_clip import from_open_clip, to_open_clip

__all__ = [
    "Fields",
    "differences",
    "essence",
    "from_hugging_face",
    "from_open_clip",
    "to_hugging_face",
    "to_open_clip",
    "with_normalization",
]
