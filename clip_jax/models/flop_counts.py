"""FLOPs of the parts of towers: each multiplication and each addition counts as one.

Only matrix products and convolutions count. Attention counts in full where a mask hides half of it,
windows count in full where they reach over an edge, and so does a last block of which one token is
read.
"""

from __future__ import annotations

from clip_jax.models.tower import BlockSizes, hidden_width

RGB = 3


def product(rows: int, inputs: int, outputs: int) -> int:
    """Returns the FLOPs of a product of matrices [rows, inputs] and [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Returns the FLOPs of attention, without its projections.

    Args:
      queries: the number of queries.
      keys: the number of keys and values.
      width: the features of all heads together.
    """
    return product(queries, width, keys) + product(queries, keys, width)


def attention_pool(places: int, width: int) -> int:
    """Returns the FLOPs of one query's attention to all places.

    The projections of queries, keys and values count too.
    """
    projections = product(1, width, width) + product(places, width, 2 * width)
    return projections + attention(1, places, width)


def mlp(tower: BlockSizes, rows: int) -> int:
    """Returns the FLOPs of the MLP of one block over `rows` tokens."""
    return 2 * product(rows, tower.width, hidden_width(tower))


def transformer(tower: BlockSizes, length: int) -> int:
    """Returns the FLOPs of all blocks over a sequence of `length` tokens."""
    width = tower.width
    projections = product(length, width, 3 * width) + product(length, width, width)
    return tower.layers * (projections + attention(length, length, width) + mlp(tower, length))


def convolved_side(side: int, size: int, stride: int, padding: int) -> int:
    """Returns the side of a convolution's output in pixels.

    Args:
      side: the side of the input, a square.
      size: the side of a window.
      stride: the distance of neighbouring windows.
      padding: rows of zeros before and after, together.
    """
    return (side + padding - size) // stride + 1
