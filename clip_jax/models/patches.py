"""Images of any shape as one array of patches, each of which says where it lies.

An image is uint8 [patches, bytes]. The bytes of a patch are its pixels, row by row with R, G and B
side by side, then four 16-bit numbers: its row and its column in the grid of patches, and the
numbers of rows and columns of that grid. Patches of padding are zeros: their grid has no rows. So
images of different shapes are rows of one array, and the order of patches means nothing.

Importing this imports no JAX; `unpack` takes arrays of NumPy and of JAX.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

PLACE_BYTES = 8
MOST_PATCHES = (1 << 16) - 1  # of an image; larger grids need more than 16 bits
_EPS = 1e-5  # of the search for an image's scale
_MOST_SCALE = 100.0

Packed = UInt8[np.ndarray, "patches bytes"]


class Places(NamedTuple):
    """Where patches lie, as integers [*batch, patches].

    Attributes:
      row, column: the place of each patch in the grid of its image.
      rows, columns: the shape of that grid; 0 for padding.
    """

    row: Any
    column: Any
    rows: Any
    columns: Any


@dataclasses.dataclass(frozen=True)
class PatchBudget:
    """The number of patches that images of any shape are resized to, at most.

    Attributes:
      patch_size: the side of a patch in pixels.
      patches: the most patches of an image; the array of an image has as many.
    """

    patch_size: int
    patches: int

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the array of one image."""
        return self.patches, self.patch_size**2 * 3 + PLACE_BYTES

    @property
    def side(self) -> int:
        """The side in pixels of a square image."""
        return math.isqrt(self.patches) * self.patch_size

    def size_for(self, height: int | float, width: int | float) -> tuple[int, int]:
        """Returns the height and the width in pixels that an image is resized to.

        Both are multiples of the patch size. The image is scaled by the largest factor whose
        patches, those at the right and the bottom edge completed, are within the budget. The factor
        is found by bisection between 10^-6 and 100, to 10^-5, as transformers' Siglip2 does.
        """

        def grid(scale: float) -> tuple[int, int]:
            rows, columns = (
                max(1, math.ceil(side * scale / self.patch_size)) for side in (height, width)
            )
            return rows, columns

        low, high = _EPS / 10, _MOST_SCALE
        while high - low >= _EPS:
            middle = (low + high) / 2
            if math.prod(grid(middle)) <= self.patches:
                low = middle
            else:
                high = middle
        rows, columns = grid(low)
        return rows * self.patch_size, columns * self.patch_size

    def pack(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Packed:
        """Returns the array of an image whose sides are those of `size_for`."""
        size = self.patch_size
        rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
        count = rows * columns
        packed = np.zeros(self.shape, np.uint8)
        grid = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        packed[:count, :-PLACE_BYTES] = grid.reshape(count, -1)
        places = np.empty((rows, columns, 4), "<u2")
        places[..., 0], places[..., 1] = np.ogrid[:rows, :columns]
        places[..., 2:] = rows, columns
        packed[:count, -PLACE_BYTES:] = places.reshape(count, 4).view(np.uint8)
        return packed


def unpack(packed: Any) -> tuple[Any, Places]:
    """Returns the pixels of patches, uint8 [*batch, patches, pixels], and their places."""
    numbers = packed[..., -PLACE_BYTES:].astype(np.int32)
    numbers = numbers[..., ::2] + 256 * numbers[..., 1::2]
    return packed[..., :-PLACE_BYTES], Places(*(numbers[..., i] for i in range(4)))


def grid(packed: Packed, values: np.ndarray) -> np.ndarray:
    """Returns values of an image's patches, [..., patches], in its grid: [..., rows, columns]."""
    _, places = unpack(packed)
    there = places.rows > 0
    shape = int(places.rows.max()), int(places.columns.max())
    result = np.zeros((*values.shape[:-1], *shape), values.dtype)
    result[..., places.row[there], places.column[there]] = values[..., there]
    return result


def picture(packed: Packed) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an image of `PatchBudget.pack`."""
    pixels, _ = unpack(packed)
    size = math.isqrt(pixels.shape[1] // 3)
    squares = grid(packed, pixels.T)
    rows, columns = squares.shape[1:]
    squares = squares.reshape(size, size, 3, rows, columns).transpose(3, 0, 4, 1, 2)
    return squares.reshape(rows * size, columns * size, 3)
