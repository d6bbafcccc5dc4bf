"""What every image tower does first: look at the shape, and normalise what is uint8."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from clip_jax.models.zoo import ImageTowerConfig


def normalized(
    image: Num[Array, "batch height width 3"], config: ImageTowerConfig
) -> Float[Array, "batch height width 3"]:
    """uint8 in 0…255 less the mean, over the deviation; what is floating point is so already.

    Raises:
      ValueError: the images are not of `config.image_size`.
    """
    size = config.image_size
    if image.shape[1:] != (size, size, 3):
        raise ValueError(f"images are {image.shape[1:]}, this model takes {(size, size, 3)}")
    if image.dtype != jnp.uint8:
        return image
    mean, std = (255 * jnp.array(v) for v in (config.mean, config.std))
    return (image.astype(jnp.float32) - mean) / std
