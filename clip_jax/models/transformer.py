"""Transformer blocks with LayerNorms before or after their parts, and stacks of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import VECTOR
from clip_jax.errors import UserError
from clip_jax.models.attention import Heads, Mask, Queries, attend
from clip_jax.models.initializers import XAVIER_UNIFORM, BlockInit, Initializer
from clip_jax.models.layers import layer_norm, linear
from clip_jax.models.stack import check_remat, first_layers, scan, stack
from clip_jax.models.tower import BlockSizes, hidden_width

Cache = tuple[Heads, Heads]  # keys and values
Position = int | Int[Array, " batch"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,  # of NLLB's encoder, no choice of a config
}


def take_position(
    x: Float[Array, "batch length *rest"], at: Position
) -> Float[Array, "batch 1 *rest"]:
    """Returns one position of each row, as a masked sum: its gradient needs no scatter."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    here = jnp.arange(x.shape[1]) == at[:, None]
    chosen = jnp.where(here.reshape(*here.shape, *[1] * (x.ndim - 2)), x, 0)
    return jnp.sum(chosen, axis=1, keepdims=True)


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(
        self,
        config: BlockSizes,
        *,
        init: BlockInit,
        bias: bool = True,
        out_bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        width, self.heads = config.width, config.heads
        common = dict(dtype=dtype, rngs=rngs)
        self.qkv = linear(
            width,
            3 * width,
            init=init.qkv,
            use_bias=bias,
            axes=("width", "heads"),
            bias_axis="heads",
            **common,
        )
        self.out = linear(
            width, width, use_bias=out_bias, init=init.out, axes=("heads", "width"), **common
        )

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        causal: bool,
        mask: Mask | None = None,
        at: Position | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Applies attention: every position attends to all positions of its row that `mask` allows.

        Args:
          x: the sequence.
          causal: whether a position attends only to itself and those before it.
          mask: True where a query attends to a key.
          at: the only position of each row that is computed, with a result [batch, 1, width]; None:
            all.
        """
        q, k, v = self.queries_keys_values(x, at)
        if causal and at is not None:
            visible = jnp.arange(x.shape[1]) <= jnp.reshape(at, (-1, 1, 1, 1))
            mask, causal = visible if mask is None else visible & mask, False
        attended = attend(q, k, v, mask, causal=causal)
        return self.output(attended.reshape(*q.shape[:2], x.shape[-1]))

    def queries_keys_values(
        self, x: Float[Array, "batch length width"], at: Position | None
    ) -> tuple[Queries, Heads, Heads]:
        """Returns the queries of the positions that are computed, and all keys and values."""
        queries = x if at is None else take_position(x, at)
        hidden = self.qkv.reduce(x) if self.qkv.rank else None
        if sharding.splits_heads(self.heads):
            q, k, v = self._by_head(x, hidden)
            return q if at is None else take_position(q, at), k, v
        q, k, v = self._by_three_products(queries, x)
        if hidden is not None:
            read = hidden if at is None else take_position(hidden, at)
            q, k, v = self._adapted((q, k, v), read, hidden)
        return q, k, v

    def output(
        self, attended: Float[Array, "batch queries width"]
    ) -> Float[Array, "batch queries width"]:
        """Returns the projection of what the heads attended to."""
        return self.out(attended)

    def step(
        self,
        x: Float[Array, "batch 1 width"],
        cache: Cache,
        position: Int[Array, ""],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch 1 width"], Cache]:
        """Applies causal attention to one position, given the keys and values of those before it.

        Args:
          x: the sequence at this position.
          cache: the keys and values of all positions.
          position: the number of this position.
          mask: the positions that may be attended to; None: all.

        Returns:
          The result at this position, and the cache with its key and value.
        """
        q, *new = self._by_three_products(x, x)
        if self.qkv.rank:
            hidden = self.qkv.reduce(x)
            q, *new = self._adapted((q, *new), hidden, hidden)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype), position, axis=1)
            for old, part in zip(cache, new, strict=True)
        )
        visible = (jnp.arange(k.shape[1]) <= position)[None]
        visible = (visible if mask is None else visible & mask)[:, None, None]
        attended = jax.nn.dot_product_attention(q, k, v, mask=visible)
        return self.out(attended.reshape(x.shape)), (k, v)

    def _by_three_products(
        self, queries: Float[Array, "batch queries width"], x: Float[Array, "batch length width"]
    ) -> list[Array]:
        """Queries, keys and values by three products, whose results need no slicing."""
        layer, parts = self.qkv, []
        kernels = jnp.split(layer.kernel[...], 3, -1)
        biases = [None] * 3 if layer.bias is None else jnp.split(layer.bias[...], 3, -1)
        for rows, kernel, bias in zip((queries, x, x), kernels, biases, strict=True):
            y = layer.dot_general(rows.astype(layer.dtype or rows.dtype), kernel)
            heads = (*rows.shape[:2], self.heads, rows.shape[2] // self.heads)
            parts.append((y if bias is None else y + bias.astype(y.dtype)).reshape(heads))
        return parts

    def _adapted(self, parts: tuple[Array, ...], read: Array, hidden: Array) -> list[Array]:
        """Queries, keys and values with what an adapter adds: `read` and `hidden` times B.

        The queries may be fewer than the keys.
        """
        factors = jnp.split(self.qkv.lora_b[...], 3, -1)
        more = map(self.qkv.expand, (read, hidden, hidden), factors)
        return [y + m.reshape(y.shape) for y, m in zip(parts, more, strict=True)]

    def _by_head(self, x: Float[Array, "batch length width"], hidden: Array | None) -> list[Heads]:
        """Queries, keys and values from a kernel grouped by head, as heads are sharded.

        `hidden` is what an adapter adds, before its second factor.
        """

        def grouped(param: nnx.Param) -> Array:
            parts = param[...].reshape(-1, 3, self.heads, x.shape[-1] // self.heads)
            return parts.swapaxes(1, 2).reshape(param.shape)

        layer = self.qkv
        y = layer.dot_general(x.astype(layer.dtype or x.dtype), grouped(layer.kernel))
        if layer.bias is not None:
            y = y + grouped(layer.bias).astype(y.dtype)
        if hidden is not None:
            y = y + layer.expand(hidden, grouped(layer.lora_b))
        parts = y.reshape(*x.shape[:2], self.heads, 3, x.shape[2] // self.heads)
        return [parts[..., i, :] for i in range(3)]


class AttentionPool(nnx.Module):
    """Pools by the attention of a learned query and an MLP (MAP; Zhai et al. 2022, section 3)."""

    def __init__(
        self,
        config: BlockSizes,
        activation: str,
        *,
        init: BlockInit,
        probe_init: Initializer = XAVIER_UNIFORM,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        width, self.heads = config.width, config.heads
        common = dict(dtype=dtype, rngs=rngs)
        # initialised as in big_vision: a matrix of one row
        self.probe = nnx.Param(probe_init(rngs.params(), (1, width))[0], spec=VECTOR)
        self.q = linear(width, width, init=init.qkv, **common)
        self.kv = linear(width, 2 * width, init=init.qkv, **common)
        self.out = linear(width, width, init=init.out, **common)
        self.ln = layer_norm(width, config.eps, rngs)
        self.mlp = MLP(config, activation, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Mask | None = None
    ) -> Float[Array, "batch width"]:
        """Returns one vector for each row, of the positions that `mask` allows."""
        batch, length, width = x.shape
        heads = (batch, length, self.heads, width // self.heads)
        query = jnp.broadcast_to(self.probe[...].astype(x.dtype), (batch, 1, width))
        k, v = (part.reshape(heads) for part in jnp.split(self.kv(x), 2, axis=-1))
        query = self.q(query).reshape(batch, 1, *heads[2:])
        attended = jax.nn.dot_product_attention(query, k, v, mask=mask)
        pooled = self.out(attended.reshape(batch, width))
        return pooled + self.mlp(self.ln(pooled))


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        config: BlockSizes,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        width, hidden = config.width, hidden_width(config)
        common = dict(dtype=dtype, rngs=rngs)
        self.fc = linear(
            width, hidden, init=init.fc, axes=("width", "hidden"), bias_axis="hidden", **common
        )
        self.proj = linear(hidden, width, init=init.proj, axes=("hidden", "width"), **common)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP to each position."""
        return self.proj(ACTIVATIONS[self.activation](self.fc(x)))


class Block(nnx.Module):
    """A residual block: attention, then MLP.

    CLIP has a LayerNorm before each of the two, BERT one after each sum (`post_norm`). With
    `layer_scale` learned gains scale what each of the two adds (Touvron et al. 2021). `attention`
    and `mlp` are the classes of the two, which are made as `Attention` and `MLP` are.
    """

    def __init__(
        self,
        config: BlockSizes,
        activation: str,
        *,
        init: BlockInit,
        post_norm: bool = False,
        layer_scale: float = 0.0,
        attention_bias: bool = True,
        attention: Callable[..., Attention] = Attention,
        mlp: Callable[..., nnx.Module] = MLP,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.post_norm, self.scales = post_norm, layer_scale > 0
        self.ln_1 = layer_norm(config.width, config.eps, rngs, dtype)
        self.attention = attention(config, init=init, bias=attention_bias, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config.width, config.eps, rngs, dtype)
        self.mlp = mlp(config, activation, init=init, dtype=dtype, rngs=rngs)
        if self.scales:
            gains = jnp.full(config.width, layer_scale)
            self.scale_1, self.scale_2 = (nnx.Param(gains, spec=VECTOR) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        causal: bool,
        mask: Mask | None = None,
        at: Position | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Returns the residual stream after attention and MLP; with `at`, at one position a row."""
        stream = x if at is None else take_position(x, at)
        if self.post_norm:
            x = self.ln_1(stream + self.attention(x, causal, mask, at)).astype(x.dtype)
            return self.ln_2(x + self.mlp(x)).astype(x.dtype)
        return self._after_attention(stream, self.attention(self.ln_1(x), causal, mask, at))

    def step(
        self,
        x: Float[Array, "batch 1 width"],
        cache: Cache,
        position: Int[Array, ""],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch 1 width"], Cache]:
        """Returns the residual stream at one position, see `Attention.step`."""
        y, cache = self.attention.step(self.ln_1(x), cache, position, mask)
        return self._after_attention(x, y), cache

    def _after_attention(
        self, stream: Float[Array, "batch queries width"], attended: Array
    ) -> Float[Array, "batch queries width"]:
        """Returns the residual stream of a block with LayerNorms before its parts."""
        if not self.scales:
            x = stream + attended
            return x + self.mlp(self.ln_2(x))
        x = stream + attended * self.scale_1[...].astype(stream.dtype)
        return x + self.mlp(self.ln_2(x)) * self.scale_2[...].astype(x.dtype)


class Transformer(nnx.Module):
    """The blocks of a tower. Their parameters are stacked on a leading axis, and scanned.

    `remat` names what the backward pass recomputes: `none` nothing, `full` everything; `dots` keeps
    the results of the linear layers. `chunk` is the number of rows of each device that a layer
    takes at a time, see `stack.scan`. `block` is the class of the blocks, which are called as a
    `Block` is; other `options` are its own.
    """

    def __init__(
        self,
        config: BlockSizes,
        activation: str,
        *,
        init: BlockInit,
        causal: bool,
        block: Callable[..., nnx.Module] = Block,
        dtype: DTypeLike,
        remat: str,
        chunk: int = 0,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.causal = causal
        self.remat = check_remat(remat)
        self.chunk = chunk
        self.blocks = stack(
            partial(block, config, activation, init=init, dtype=dtype, **options),
            config.layers,
            rngs,
        )

    def first(
        self, x: Float[Array, "batch length width"], count: int, mask: Mask | None = None
    ) -> Array:
        """Applies the first `count` blocks: [batch, length, width]."""

        def apply(block: Callable[..., Array], x: Array, mask: Any) -> Array:
            return block(x, self.causal, mask)

        return scan(first_layers(self.blocks, count), x, apply, self.remat, rest=(mask,))

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Mask | None = None,
        at: Position | None = None,
    ) -> Float[Array, "batch positions width"]:
        """Applies all blocks.

        With `at`, the result is only that position of each row, [batch, 1, width]: the last block
        computes no other.
        """
        fixed = isinstance(at, int)

        def apply(block: Callable[..., Array], x: Array, mask: Any, _: Any) -> Array:
            return block(x, self.causal, mask)

        def apply_last(block: Callable[..., Array], x: Array, mask: Any, place: Any) -> Array:
            return block(x, self.causal, mask, at if fixed else place)

        return scan(
            self.blocks,
            x,
            apply,
            self.remat,
            chunk=self.chunk,
            rest=(mask, None if fixed else at),
            last=None if at is None else apply_last,
        )
