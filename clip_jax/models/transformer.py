"""The one Transformer block, and a stack of them scanned over a leading layer axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.models.linear import RESULT, linear
from clip_jax.models.zoo import TextConfig, VisionConfig

TowerConfig = VisionConfig | TextConfig

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

# What the backward pass finds saved; the rest it computes again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(RESULT),
}


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm in fp32, eps 1e-5, whatever the type of its input."""
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


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
        self, x: Float[Array, "batch length width"], causal: bool
    ) -> Float[Array, "batch length width"]:
        """Every position attends to all of its row, or to those up to itself."""
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, width // self.heads)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, config: TowerConfig, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        common = dict(dtype=dtype, rngs=rngs)
        self.fc = linear(width, hidden, kernel_init=_normal((2 * width) ** -0.5), **common)
        self.proj = linear(hidden, width, kernel_init=_normal(_output_std(config)), **common)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Position by position."""
        return self.proj(ACTIVATIONS[self.activation](self.fc(x)))


class Block(nnx.Module):
    """Pre-LayerNorm residual block: attention, then MLP.

    Initialised as the paper does (section 2.4): attention and MLP inputs by their width, outputs
    scaled down by the depth of the stack, so that the residual stream keeps its variance.
    """

    def __init__(
        self, config: TowerConfig, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.ln_1 = layer_norm(config.width, rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config.width, rngs)
        self.mlp = MLP(config, activation, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], causal: bool
    ) -> Float[Array, "batch length width"]:
        """The residual stream after attention and MLP."""
        x = x + self.attention(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """A tower's blocks, whose parameters are stacked on a leading axis and scanned over.

    One layer is compiled whatever the depth. `remat` names what of a layer's activations is kept
    for the backward pass: `none` recomputes nothing, `full` recomputes everything, `dots` keeps
    the results of the linear layers.
    """

    def __init__(
        self,
        config: TowerConfig,
        activation: str,
        *,
        causal: bool,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        if remat not in REMAT_POLICIES:
            raise UserError(f"unknown remat {remat!r}; known: {', '.join(REMAT_POLICIES)}")
        self.causal = causal
        self.remat = remat

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, activation, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """All blocks in turn."""
        block, stacked = nnx.split(self.blocks)

        def layer(x: Array, params: nnx.State) -> tuple[Array, None]:
            return nnx.merge(block, params)(x, self.causal), None

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(layer, x, stacked)[0]
