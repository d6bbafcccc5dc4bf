"""Architectures as open_clip and transformers write them in JSON, to ours and back.

Such a file is a stranger's: every value is checked for its type and size, and what we have no
module for is refused by name.
"""

from clip_jax.weights.configs.essence import as_openai, differences, essence, with_normalization
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.hugging_face import from_hugging_face, to_hugging_face
from clip_jax.weights.configs.open_clip import from_open_clip, to_open_clip

__all__ = [
    "Fields",
    "as_openai",
    "differences",
    "essence",
    "from_hugging_face",
    "from_open_clip",
    "to_hugging_face",
    "to_open_clip",
    "with_normalization",
]
