"""The Transformer block before or after whose parts a LayerNorm stands, and stacks of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clip_jax import partition
from clip_jax.errors import UserError
from clip_jax.models.linear import linear
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.zoo import BertConfig, TextConfig, VisionConfig

TowerConfig = VisionConfig | TextConfig | BertConfig
Mask = Bool[Array, "#batch #heads #queries keys"]
Heads = Float[Array, "batch length heads size"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def layer_norm(width: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm in fp32, whatever the type of its input."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def _normal(std: float) -> nnx.Initializer:
    return nnx.initializers.normal(std)


def _output_std(config: TowerConfig) -> float:
    return config.width**-0.5 * (2 * config.layers) ** -0.5


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, self.heads = config.width, config.heads
        common = dict(dtype=dtype, rngs=rngs)
        self.qkv = linear(width, 3 * width, kernel_init=_normal(width**-0.5), **common)
        self.out = linear(width, width, kernel_init=_normal(_output_std(config)), **common)

    def __call__(
        self, x: Float[Array, "batch length width"], causal: bool, mask: Mask | None = None
    ) -> Float[Array, "batch length width"]:
        """Every position attends to all of its row (that `mask` allows), or to those up to it."""
        q, k, v = self._by_head(x) if partition.splits(self.heads) else self._together(x)
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
        return self.out(attended.reshape(x.shape))

    def _together(self, x: Float[Array, "batch length width"]) -> list[Heads]:
        """Queries, keys and values."""
        shape = (*x.shape[:2], self.heads, -1)
        return [part.reshape(shape) for part in jnp.split(self.qkv(x), 3, axis=-1)]

    def _by_head(self, x: Float[Array, "batch length width"]) -> list[Heads]:
        """The same from a kernel in which a head's three stand together, as devices share them."""

        def grouped(param: nnx.Param) -> Array:
            parts = param[...].reshape(-1, 3, self.heads, x.shape[-1] // self.heads)
            return parts.swapaxes(1, 2).reshape(param.shape)

        layer = self.qkv
        y = layer.dot_general(x.astype(layer.dtype or x.dtype), grouped(layer.kernel))
        y = y + grouped(layer.bias).astype(y.dtype)
        parts = y.reshape(*x.shape[:2], self.heads, 3, -1)
        return [parts[..., i, :] for i in range(3)]


class AttentionPool(nnx.Module):
    """What one learned query attends to, through an MLP (MAP; Zhai et al. 2022, section 3)."""

    def __init__(
        self, config: VisionConfig, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, self.heads = config.width, config.heads
        common = dict(kernel_init=_normal(width**-0.5), dtype=dtype, rngs=rngs)
        self.probe = nnx.Param(_normal(width**-0.5)(rngs.params(), (width,)))
        self.q = linear(width, width, **common)
        self.kv = linear(width, 2 * width, **common)
        self.out = linear(width, width, **common)
        self.ln = layer_norm(width, config.eps, rngs)
        self.mlp = MLP(config, activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        """One vector a row."""
        batch, _, width = x.shape
        heads = (batch, -1, self.heads, width // self.heads)
        query = jnp.broadcast_to(self.probe[...].astype(x.dtype), (batch, 1, width))
        k, v = (part.reshape(heads) for part in jnp.split(self.kv(x), 2, axis=-1))
        attended = jax.nn.dot_product_attention(self.q(query).reshape(heads), k, v)
        pooled = self.out(attended.reshape(batch, width))
        return pooled + self.mlp(self.ln(pooled))


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, config: TowerConfig, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        common = dict(dtype=dtype, rngs=rngs)
        self.fc = linear(width, hidden, kernel_init=_normal((2 * width) ** -0.5), **common)
        self.proj = linear(hidden, width, kernel_init=_normal(_output_std(config)), **common)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Position by position."""
        return self.proj(ACTIVATIONS[self.activation](self.fc(x)))


class Block(nnx.Module):
    """A residual block: attention, then MLP.

    CLIP's have a LayerNorm before each of the two, BERT's one after each sum (`post_norm`).
    Initialised as CLIP's paper does (section 2.4): attention and MLP inputs by their width, outputs
    scaled down by the depth of the stack, so that the residual stream keeps its variance.
    """

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        post_norm: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.post_norm = post_norm
        self.ln_1 = layer_norm(config.width, config.eps, rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config.width, config.eps, rngs)
        self.mlp = MLP(config, activation, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], causal: bool, mask: Mask | None = None
    ) -> Float[Array, "batch length width"]:
        """The residual stream after attention and MLP."""
        if self.post_norm:
            x = self.ln_1(x + self.attention(x, causal, mask)).astype(x.dtype)
            return self.ln_2(x + self.mlp(x)).astype(x.dtype)
        x = x + self.attention(self.ln_1(x), causal, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """A tower's blocks, whose parameters are stacked on a leading axis and scanned over.

    `remat` names what of a layer's activations is kept for the backward pass: `none` recomputes
    nothing, `full` recomputes everything, `dots` keeps the results of the linear layers.
    """

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        causal: bool,
        post_norm: bool = False,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.causal = causal
        self.remat = check_remat(remat)
        self.blocks = stack(
            partial(Block, config, activation, post_norm=post_norm, dtype=dtype),
            config.layers,
            rngs,
        )

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Mask | None = None
    ) -> Float[Array, "batch length width"]:
        """All blocks in turn."""
        return scan(self.blocks, x, lambda block, x: block(x, self.causal, mask), self.remat)
