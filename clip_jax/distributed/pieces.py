"""Functions of the rows of a batch that each device applies to a few of its own rows at a time.

`map_pieces` is the forward pass, `pull_pieces` the backward pass, which computes the former's
intermediate values again. Callers join them by a `jax.custom_vjp`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from clip_jax.distributed import sharding


def map_pieces(function: Callable[[Any, Any], Any], shared: Any, rows: Any, most: int) -> Any:
    """Returns `function(shared, rows)`, computed piece by piece.

    Args:
      function: maps what all rows share and some rows to a tree of arrays with as many rows.
      shared: what all rows share.
      rows: a tree of arrays [n, …], sharded like a batch.
      most: the rows of a piece at most, on each device.
    """

    def forward(shared: Any, rows: Any) -> tuple[tuple[()], Any]:
        return (), _merged(jax.lax.map(partial(function, shared), split(rows, most)))

    return sharding.by_device(forward, shared, rows)[1]


def pull_pieces(
    function: Callable[[Any, Any], Array],
    shared: Any,
    rows: tuple[Array, Any],
    gradient: Array,
    most: int,
) -> tuple[Any, Array]:
    """Returns the gradients of `function` by `shared`, float32, and by the first of the rows.

    The gradients by `shared` are summed over all pieces before devices exchange them.

    Args:
      function: as for `map_pieces`, with a single array as result.
      shared: as for `map_pieces`.
      rows: an array [n, …], and a tree of more that has no gradient.
      gradient: the gradient of the result.
      most: as for `map_pieces`.
    """

    def backward(shared: Any, rows: Any) -> tuple[Any, Array]:
        def add_piece(sums: Any, piece: Any) -> tuple[Any, Array]:
            (x, rest), gradient = piece
            _, pull = jax.vjp(lambda shared, x: function(shared, (x, rest)), shared, x)
            more, to_x = pull(gradient)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more), to_x

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared)
        sums, to_x = jax.lax.scan(add_piece, zero, split(rows, most))
        return sums, _merged(to_x)

    sums, to_x = sharding.by_device(backward, shared, (rows, gradient))
    return sums, to_x


def split(rows: Any, most: int) -> Any:
    """Returns arrays [n, …] as [pieces, m, …], with the largest m up to `most` that divides n."""
    n = len(jax.tree.leaves(rows)[0])
    size = next(m for m in range(min(most, n), 0, -1) if n % m == 0)
    return jax.tree.map(lambda x: x.reshape(n // size, size, *x.shape[1:]), rows)


def _merged(pieces: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pieces)
