"""Attention of one sequence to another: of a text's tokens to the places of an image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clip_jax.models.initializers import LinearInit
from clip_jax.models.layers import linear

# Keys and values of the places of an image.
Places = tuple[Float[Array, "batch places heads size"], Float[Array, "batch places heads size"]]
Stacked = tuple[Float[Array, "layers ..."], Float[Array, "layers ..."]]  # those of all layers


class CrossAttention(nnx.Module):
    """Multi-head attention of queries to places, which may have another width.

    Args:
      width: features of a query, and of the result.
      heads: attention heads.
      inputs: features of a place; None: `width`.
      q, kv, out: the initializers of the three linear layers.
      dtype: one of `model_config.DTYPES`.
      rngs: the source of the initial values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        inputs: int | None = None,
        q: LinearInit,
        kv: LinearInit | None = None,
        out: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        common = dict(dtype=dtype, rngs=rngs)
        self.q = linear(width, width, init=q, **common)
        self.kv = linear(inputs or width, 2 * width, init=kv or q, **common)
        self.out = linear(width, width, init=out, **common)

    def __call__(
        self, x: Float[Array, "batch tokens width"], memory: Float[Array, "batch places inputs"]
    ) -> Float[Array, "batch tokens width"]:
        """Returns what the queries read from the places."""
        return self.read(x, self.keys_and_values(memory))

    def keys_and_values(self, memory: Float[Array, "batch places inputs"]) -> Places:
        """Returns the keys and values of the places."""
        k, v = map(self._by_head, jnp.split(self.kv(memory), 2, axis=-1))
        return k, v

    def read(
        self, x: Float[Array, "batch tokens width"], memory: Places
    ) -> Float[Array, "batch tokens width"]:
        """Returns what the queries read from places with these keys and values."""
        return self.attend(self.q(x), memory)

    def attend(
        self, query: Float[Array, "batch tokens width"], memory: Places
    ) -> Float[Array, "batch tokens width"]:
        """Returns what queries read that are projected already."""
        attended = jax.nn.dot_product_attention(self._by_head(query), *memory)
        return self.out(attended.reshape(query.shape))

    def _by_head(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length heads size"]:
        return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads)


def stacked_places(blocks: nnx.Module, memory: Float[Array, "batch places width"]) -> Stacked:
    """Returns the keys and values of the places in each of a stack of blocks.

    Args:
      blocks: blocks of a decoder, stacked, with a method `keys_and_values`.
      memory: the features of the places.
    """
    graph, params = nnx.split(blocks, nnx.Param)

    def layer(_: None, params: Any) -> tuple[None, Places]:
        return None, nnx.merge(graph, params).keys_and_values(memory)

    return jax.lax.scan(layer, None, params)[1]


def read_stacked(
    blocks: nnx.Module,
    x: Float[Array, "batch tokens width"],
    places: Stacked,
    mask: Bool[Array, "1 1 tokens tokens"],
) -> Float[Array, "batch tokens width"]:
    """Returns the output of a stack of blocks, given the keys and values of the places.

    Args:
      blocks: blocks of a decoder, stacked, with a method `read`.
      x: the input.
      places: the result of `stacked_places`.
      mask: the tokens that each one may attend to.
    """
    graph, params = nnx.split(blocks, nnx.Param)

    def layer(x: Array, inputs: Any) -> tuple[Array, None]:
        params, places = inputs
        return nnx.merge(graph, params).read(x, places, mask), None

    return jax.lax.scan(layer, x, (params, places))[0]
