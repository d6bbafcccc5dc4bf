"""Dropout whose random numbers belong to rows of the batch, not to their order or device.

The keys of the rows are set around a tower's call, so that layers at any depth find them.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

RowKeys = Key[Array, " batch"]
_KEYS: contextvars.ContextVar[RowKeys | None] = contextvars.ContextVar("row_keys", default=None)


@contextlib.contextmanager
def row_keys(keys: RowKeys | None) -> Iterator[None]:
    """Turns dropout on in layers that are called inside the context.

    Args:
      keys: a random key for each row of the batch; None turns dropout off.
    """
    token = _KEYS.set(keys)
    try:
        yield
    finally:
        _KEYS.reset(token)


def _folded(keys: RowKeys, number: Any) -> RowKeys:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def drop(x: Float[Array, "*shape"], rate: float, number: int) -> Float[Array, "*shape"]:
    """Sets a random share of the values to zero, and scales the others.

    Outside `row_keys` it returns `x` as it is.

    Args:
      x: rows of the batch.
      rate: the share.
      number: the number of the layer, so that layers draw different numbers.
    """
    keys = _KEYS.get()
    if keys is None or not rate:
        return x
    masks = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))
    return jnp.where(masks(_folded(keys, number)), x / (1 - rate), 0)


def layer_numbers(count: int) -> Int[Array, " layers"] | None:
    """Returns the numbers of `count` scanned layers, or None outside `row_keys`."""
    return None if _KEYS.get() is None else jnp.arange(count)


def numbered(layer: Callable[[Any, Any], Any]) -> Callable[[Any, tuple[Any, Any]], Any]:
    """Makes a body of `jax.lax.scan` that takes the number of the layer beside its variables.

    Args:
      layer: `layer(x, variables)` applies a layer.
    """

    def body(x: Any, xs: tuple[Any, Any]) -> Any:
        variables, number = xs
        keys = _KEYS.get()
        with row_keys(None if keys is None else _folded(keys, number)):
            return layer(x, variables)

    return body
