"""FLOPs of the parts that towers are made of: two for each multiplication and addition.

Only matrix products and convolutions count. Attention counts in full where a mask hides half of it,
windows count in full where they reach over an edge, and so does a last block of which one token is
read.
"""

from __future__ import annotations

from clip_jax.models.tower import BlockSizes, hidden_width

RGB = 3


def product(rows: int, inputs: int, outputs: int) -> int:
    """A product of matrices [rows, inputs] and [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Attention from queries, keys and values to its output, without projections."""
    return product(queries, width, keys) + product(queries, keys, width)


def attention_pool(places: int, width: int) -> int:
    """One query's attention to all places, with the projections of queries, keys and values."""
    projections = product(1, width, width) + product(places, width, 2 * width)
    return projections + attention(1, places, width)


def mlp(tower: BlockSizes, rows: int) -> int:
    """The MLP of a block."""
    return 2 * product(rows, tower.width, hidden_width(tower))


def transformer(tower: BlockSizes, length: int) -> int:
    """All blocks over a sequence of `length` tokens."""
    width = tower.width
    projections = product(length, width, 3 * width) + product(length, width, width)
    return tower.layers * (projections + attention(length, length, width) + mlp(tower, length))


def convolved_side(side: int, size: int, stride: int, padding: int) -> int:
    """The side of a convolution's output, of a square of `side` pixels."""
    return (side + padding - size) // stride + 1
