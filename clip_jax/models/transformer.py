"""The Transformer block before or after whose parts a LayerNorm stands, and stacks of it."""

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
from clip_jax.errors import UserError
from clip_jax.models.initializers import XAVIER_UNIFORM, BlockInit
from clip_jax.models.linear import activation_dtype, linear
from clip_jax.models.model_config import BertConfig, TextConfig, VisionConfig
from clip_jax.models.stack import check_remat, scan, stack

TowerConfig = VisionConfig | TextConfig | BertConfig
Mask = Bool[Array, "#batch #heads #queries keys"]
Heads = Float[Array, "batch length heads size"]
Place = int | Int[Array, " batch"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def layer_norm(
    width: int, eps: float, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> nnx.LayerNorm:
    """A LayerNorm in fp32 of inputs in `dtype`.

    Those of bfloat16 are no more exact than E[x²] - E[x]² in fp32 is, which takes one pass.
    """
    fast = activation_dtype(dtype) in ("bfloat16", jnp.bfloat16)
    return nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, use_fast_variance=fast, rngs=rngs)


def taken(x: Float[Array, "batch length *rest"], at: Place) -> Float[Array, "batch 1 *rest"]:
    """One position of each row. A sum over all of them, of which one counts: no scattering."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    here = jnp.arange(x.shape[1]) == at[:, None]
    chosen = jnp.where(here.reshape(*here.shape, *[1] * (x.ndim - 2)), x, 0)
    return jnp.sum(chosen, axis=1, keepdims=True)


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(
        self, config: TowerConfig, *, init: BlockInit, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, self.heads = config.width, config.heads
        common = dict(dtype=dtype, rngs=rngs)
        self.qkv = linear(width, 3 * width, init=init.qkv, **common)
        self.out = linear(width, width, init=init.out, **common)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        causal: bool,
        mask: Mask | None = None,
        at: Place | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Every position attends to all of its row (that `mask` allows), or to those up to it.

        With `at`, one position of each row does: [batch, 1, width].
        """
        asking = x if at is None else taken(x, at)
        if sharding.splits(self.heads):
            q, k, v = self._by_head(x)
            q = q if at is None else taken(q, at)
        else:
            q, k, v = self._apart(asking, x)
        if causal and at is not None:
            seen = jnp.arange(x.shape[1]) <= jnp.reshape(at, (-1, 1, 1, 1))
            mask, causal = seen if mask is None else seen & mask, False
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
        return self.out(attended.reshape(asking.shape))

    def _apart(
        self, asking: Float[Array, "batch queries width"], x: Float[Array, "batch length width"]
    ) -> list[Array]:
        """Queries, keys and values by three products: nothing has to be cut apart."""
        layer, parts = self.qkv, []
        kernels, biases = (jnp.split(p[...], 3, -1) for p in (layer.kernel, layer.bias))
        for rows, kernel, bias in zip((asking, x, x), kernels, biases, strict=True):
            y = layer.dot_general(rows.astype(layer.dtype or rows.dtype), kernel)
            heads = (*rows.shape[:2], self.heads, rows.shape[2] // self.heads)
            parts.append((y + bias.astype(y.dtype)).reshape(heads))
        return parts

    def _by_head(self, x: Float[Array, "batch length width"]) -> list[Heads]:
        """The same from a kernel in which a head's three stand together, as devices share them."""

        def grouped(param: nnx.Param) -> Array:
            parts = param[...].reshape(-1, 3, self.heads, x.shape[-1] // self.heads)
            return parts.swapaxes(1, 2).reshape(param.shape)

        layer = self.qkv
        y = layer.dot_general(x.astype(layer.dtype or x.dtype), grouped(layer.kernel))
        y = y + grouped(layer.bias).astype(y.dtype)
        parts = y.reshape(*x.shape[:2], self.heads, 3, x.shape[2] // self.heads)
        return [parts[..., i, :] for i in range(3)]


class AttentionPool(nnx.Module):
    """What one learned query attends to, through an MLP (MAP; Zhai et al. 2022, section 3)."""

    def __init__(
        self,
        config: VisionConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        width, self.heads = config.width, config.heads
        common = dict(dtype=dtype, rngs=rngs)
        # as big_vision draws its probe, a matrix of one row
        self.probe = nnx.Param(XAVIER_UNIFORM(rngs.params(), (1, width))[0])
        self.q = linear(width, width, init=init.qkv, **common)
        self.kv = linear(width, 2 * width, init=init.qkv, **common)
        self.out = linear(width, width, init=init.out, **common)
        self.ln = layer_norm(width, config.eps, rngs)
        self.mlp = MLP(config, activation, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        """One vector a row."""
        batch, length, width = x.shape
        heads = (batch, length, self.heads, width // self.heads)
        query = jnp.broadcast_to(self.probe[...].astype(x.dtype), (batch, 1, width))
        k, v = (part.reshape(heads) for part in jnp.split(self.kv(x), 2, axis=-1))
        query = self.q(query).reshape(batch, 1, *heads[2:])
        attended = jax.nn.dot_product_attention(query, k, v)
        pooled = self.out(attended.reshape(batch, width))
        return pooled + self.mlp(self.ln(pooled))


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        common = dict(dtype=dtype, rngs=rngs)
        self.fc = linear(width, hidden, init=init.fc, **common)
        self.proj = linear(hidden, width, init=init.proj, **common)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Position by position."""
        return self.proj(ACTIVATIONS[self.activation](self.fc(x)))


class Block(nnx.Module):
    """A residual block: attention, then MLP.

    CLIP's have a LayerNorm before each of the two, BERT's one after each sum (`post_norm`).
    """

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        init: BlockInit,
        post_norm: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.post_norm = post_norm
        self.ln_1 = layer_norm(config.width, config.eps, rngs, dtype)
        self.attention = Attention(config, init=init, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config.width, config.eps, rngs, dtype)
        self.mlp = MLP(config, activation, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        causal: bool,
        mask: Mask | None = None,
        at: Place | None = None,
    ) -> Float[Array, "batch queries width"]:
        """The residual stream after attention and MLP; with `at`, of one position of each row."""
        stream = x if at is None else taken(x, at)
        if self.post_norm:
            x = self.ln_1(stream + self.attention(x, causal, mask, at)).astype(x.dtype)
            return self.ln_2(x + self.mlp(x)).astype(x.dtype)
        x = stream + self.attention(self.ln_1(x), causal, mask, at)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """A tower's blocks, whose parameters are stacked on a leading axis and scanned over.

    `remat` names what of a layer's activations is kept for the backward pass: `none` recomputes
    nothing, `full` recomputes everything, `dots` keeps the results of the linear layers. With
    `chunk`, a layer takes so many rows of each device at a time, see `stack.scan`.
    """

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        init: BlockInit,
        causal: bool,
        post_norm: bool = False,
        dtype: DTypeLike,
        remat: str,
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.causal = causal
        self.remat = check_remat(remat)
        self.chunk = chunk
        self.blocks = stack(
            partial(Block, config, activation, init=init, post_norm=post_norm, dtype=dtype),
            config.layers,
            rngs,
        )

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Mask | None = None,
        at: Place | None = None,
    ) -> Float[Array, "batch positions width"]:
        """All blocks in turn.

        With `at`, only that position of each row, [batch, 1, width]: the last block computes no
        other, since nothing else would read them.
        """
        fixed = isinstance(at, int)

        def every(block: Block, x: Array, mask: Any, _: Any) -> Array:
            return block(x, self.causal, mask)

        def final(block: Block, x: Array, mask: Any, each: Any) -> Array:
            return block(x, self.causal, mask, at if fixed else each)

        return scan(
            self.blocks,
            x,
            every,
            self.remat,
            chunk=self.chunk,
            rest=(mask, None if fixed else at),
            last=None if at is None else final,
        )
