"""Resizes tables of positions for other image sizes and text lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_grid(
    table: Float[Array | np.ndarray, "places width"], old: int, new: int, prefix: int
) -> Float[Array, "new_places width"]:
    """Resizes a square grid of positions to another resolution.

    The interpolation is bicubic and antialiased, as in open_clip (torch's coefficients).

    Args:
      table: `prefix` rows without a place, which stay as they are, then the rows of the grid.
      old: the side of the grid, in places.
      new: the side of the new grid.
      prefix: the number of rows without a place, such as that of a class token.
    """
    first, square = table[:prefix], table[prefix:].reshape(old, old, -1)
    square = jax.image.resize(
        square.astype(jnp.float32),
        (new, new, square.shape[-1]),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
    )
    return jnp.concatenate([first, square.reshape(new * new, -1).astype(table.dtype)])


def resize_line(
    table: Float[Array | np.ndarray, "places width"], new: int
) -> Float[Array, "new_places width"]:
    """Resizes the positions of texts to `new` tokens, by linear interpolation as in open_clip."""
    shape = new, table.shape[1]
    line = jax.image.resize(table.astype(jnp.float32), shape, "linear", antialias=False)
    return line.astype(table.dtype)
