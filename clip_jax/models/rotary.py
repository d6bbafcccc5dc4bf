"""Rotary positions of images: each row and column turns features by angles (Su et al. 2021).

They are those of EVA-02 (Fang et al. 2023, section 2.1) and of Perception Encoder (Bolya et al.
2025): one half of a head's features turns by the row, the other one by the column.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TEMPERATURE = 10_000.0  # the slowest feature turns by about 1 / TEMPERATURE from place to place

Rotation = tuple[Float[np.ndarray, "tokens size"], Float[np.ndarray, "tokens size"]]


@functools.cache
def grid_rotation(
    side: int,
    size: int,
    *,
    reference: int,
    offset: float = 0.0,
    columns_first: bool = False,
    prefix: int = 0,
) -> Rotation:
    """Returns the cosines and sines of the angles by which the tokens of an image turn.

    Args:
      side: the number of rows, and of columns, of the image's places.
      size: the number of features of an attention head, a multiple of 4.
      reference: the side of the grid on which the frequencies are defined; another grid is
        stretched to it.
      offset: the position of the first row and of the first column, before stretching.
      columns_first: whether the first half of the features turns by the column, not by the row.
      prefix: the number of tokens before the places, which do not turn.
    """
    frequencies = TEMPERATURE ** -(np.arange(size // 4) / (size // 4))
    positions = (np.arange(side) + offset) / side * reference
    rows, columns = np.meshgrid(positions, positions, indexing="ij")
    first, second = (columns, rows) if columns_first else (rows, columns)
    angles = np.stack([first, second], -1)[..., None] * frequencies
    angles = np.repeat(angles.reshape(side * side, size // 2), 2, axis=-1)
    angles = np.concatenate([np.zeros((prefix, size)), angles])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "batch tokens heads size"], rotation: Rotation
) -> Float[Array, "batch tokens heads size"]:
    """Turns each pair of neighbouring features of queries or keys, computed in fp32.

    The product of a query and a key then depends on the distance of their places.
    """
    cosine, sine = (table[:, None] for table in rotation)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x.astype(jnp.float32) * cosine + turned * sine).astype(x.dtype)
