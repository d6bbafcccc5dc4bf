"""TensorFlow Datasets and etils, or one line that says how to install them."""

from __future__ import annotations

from clip_jax.errors import UserError

try:
    import tensorflow_datasets as tfds
    from etils import epath
except ImportError as error:
    raise UserError(
        f"tensorflow-datasets is not installed ({error}): pip install 'clip_jax[tfds]'"
    ) from None

__all__ = ["epath", "tfds"]
