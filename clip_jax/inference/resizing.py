"""Preprocessing on the device: images of any size, resized and cropped by matrix products.

Pillow resizes images one by one on the host, and training and evaluation use it. This is for
programs that leave JAX, whose runtimes have no Pillow. Most values equal Pillow's, and others are
one level of 255 off, because Pillow rounds its filters. Where the width grows and the height
shrinks, Pillow resizes columns before rows, and values differ by some levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError

_CUBIC = -0.5  # the coefficient of Pillow's bicubic filter


def _bilinear(distance: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(distance), 0)


def _bicubic(distance: Array) -> Array:
    x = jnp.abs(distance)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _CUBIC
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


# The filter, and how far from its centre it reaches, in pixels of the smaller image.
_FILTERS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}


def resized(
    images: UInt8[Array, "batch height width 3"], preprocess: Preprocess
) -> Float[Array, "batch size size 3"]:
    """Resizes and crops images as a model's preprocessing does.

    Args:
      images: images of one size, which may be symbolic.
      preprocess: the preprocessing.

    Returns:
      Whole numbers in 0…255.

    Raises:
      UserError: the interpolation or the way of resizing is not among those that are here.
    """
    if preprocess.interpolation not in _FILTERS or preprocess.resize == "longest":
        what = f"interpolation {preprocess.interpolation}, resizing by {preprocess.resize}"
        raise UserError(
            f"images of any size cannot be prepared in the program ({what}); it knows "
            f"{' and '.join(_FILTERS)}, resizing by shortest and squash: export without it"
        )
    height, width = (jnp.asarray(images.shape[axis], jnp.int32) for axis in (1, 2))
    side = preprocess.resize_size or preprocess.size
    wide = tall = jnp.asarray(side, jnp.int32)
    if preprocess.resize == "shortest":  # the longer side is rounded down
        shorter = jnp.minimum(height, width)
        wide, tall = side * width // shorter, side * height // shorter
    columns = _weights(images.shape[2], width, wide, preprocess)
    rows = _weights(images.shape[1], height, tall, preprocess)
    # Channels first: products with matrices are of the last axis.
    values = _rounded(images.transpose(0, 3, 1, 2).astype(jnp.float32) @ columns)
    return _rounded(values.swapaxes(2, 3) @ rows).transpose(0, 3, 2, 1)


def _rounded(values: Array) -> Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)


def _weights(count: Any, pixels: Array, scaled: Array, preprocess: Preprocess) -> Array:
    """Returns the share of each input pixel [pixels, size] in each pixel of the crop."""
    kernel, reach = _FILTERS[preprocess.interpolation]
    margin = (scaled - preprocess.size).astype(jnp.float32) / 2
    offset = jnp.round(margin) if preprocess.half == "even" else jnp.floor(margin)
    ratio = pixels.astype(jnp.float32) / scaled.astype(jnp.float32)
    center = (jnp.arange(preprocess.size, dtype=jnp.float32) + offset + 0.5) * ratio
    support = jnp.maximum(ratio, 1.0)
    places = jnp.arange(count, dtype=jnp.int32).astype(jnp.float32)[:, None] + 0.5
    shares = kernel((places - center) / support)
    first = jnp.floor(center - reach * support + 0.5)
    last = jnp.floor(center + reach * support + 0.5)
    shares = jnp.where((places >= first) & (places < last), shares, 0)
    return shares / shares.sum(0)
