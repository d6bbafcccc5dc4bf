"""Converts the preprocessing of images from and to the JSON of open_clip and transformers.

Such files are untrusted: every value is checked for its type and size, and steps that we do not
take are refused by name.
"""

from clip_jax.weights.preprocessing.hugging_face import from_hugging_face, to_hugging_face
from clip_jax.weights.preprocessing.open_clip import from_open_clip, to_open_clip

__all__ = ["from_hugging_face", "from_open_clip", "to_hugging_face", "to_open_clip"]
