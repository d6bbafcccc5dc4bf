"""Tables of positions resized for other image sizes and text lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_grid(
    table: Float[Array | np.ndarray, "places width"], old: int, new: int, prefix: int
) -> Float[Array, "new_places width"]:
    """A square grid of positions at another resolution, after `prefix` rows without a place.

    Bicubic and antialiased, as open_clip does it (torch's coefficients).
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
    """Positions of texts of another length: linear, as open_clip does it."""
    shape = new, table.shape[1]
    line = jax.image.resize(table.astype(jnp.float32), shape, "linear", antialias=False)
    return line.astype(table.dtype)
