"""Resizes tables of positions for other image sizes and text lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clip_jax.errors import UserError


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
    table: Float[Array | np.ndarray, "places width"], new: int, keep: int = 0
) -> Float[Array, "new_places width"]:
    """Resizes the positions of texts to `new` tokens, by linear interpolation.

    Args:
      table: the positions.
      new: the number of tokens.
      keep: 0: the whole table is resized, as in open_clip. Else the first `keep` positions stay as
        they are, and the others are stretched, as in Long-CLIP (Zhang et al. 2024, section 3.1),
        which keeps 20. Positions after the last continue the line through the last two.
    """
    if keep:
        return _stretch_tail(jnp.asarray(table), new, keep)
    shape = new, table.shape[1]
    line = jax.image.resize(table.astype(jnp.float32), shape, "linear", antialias=False)
    return line.astype(table.dtype)


def _stretch_tail(
    table: Float[Array, "places width"], new: int, keep: int
) -> Float[Array, "new_places width"]:
    """Keeps the first positions, and stretches the others; see `resize_line`."""
    old = len(table)
    if not keep < min(old - 1, new):
        raise UserError(
            f"keep_positions={keep} must be below {min(old - 1, new)}: there are {old} positions, "
            f"and {new} are wanted"
        )
    place = keep + np.arange(new - keep) * ((old - keep) / (new - keep))
    low = np.minimum(place.astype(int), old - 2)
    share = jnp.asarray(place - low, jnp.float32)[:, None]
    values = table.astype(jnp.float32)
    tail = values[low] * (1 - share) + values[low + 1] * share
    return jnp.concatenate([values[:keep], tail]).astype(table.dtype)
