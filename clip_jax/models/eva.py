"""The vision Transformers of EVA-CLIP (Sun et al. 2023) and Perception Encoder (Bolya et al. 2025).

Their blocks add to CLIP's, one by one: keys without a bias (EVA-01), rotary positions, gated MLPs
and LayerNorms inside the branches (EVA-02), LayerNorms after them (EVA-02-E).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, VECTOR, ParamSpec
from clip_jax.models.eva_configs import EvaConfig
from clip_jax.models.gated_mlp import SwiGLU
from clip_jax.models.initializers import (
    EVA_CLASSIFIER,
    TIMM_BLOCK,
    TIMM_TABLE,
    TORCH,
    BlockInit,
    cut_normal,
)
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.rotary import grid_rotation, rotate
from clip_jax.models.transformer import (
    MLP,
    Attention,
    AttentionPool,
    Heads,
    Mask,
    Position,
    Queries,
    Transformer,
    take_position,
)
from clip_jax.models.vit import patches, prepend

_ACTIVATION = "gelu"  # of MLPs without a gate


class EvaAttention(Attention):
    """Self-attention with rotary positions, a LayerNorm at its end, and a bias of the keys or not.

    Of these it has what the config says.
    """

    def __init__(
        self, config: EvaConfig, *, init: BlockInit, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        super().__init__(config, init=init, bias=config.key_bias, dtype=dtype, rngs=rngs)
        self.config = config
        if not config.key_bias:
            spec = ParamSpec(("heads",), decay=False)
            self.q_bias, self.v_bias = (
                nnx.Param(jnp.zeros(config.width), spec=spec) for _ in range(2)
            )
        if config.swiglu:
            self.ln = layer_norm(config.width, config.eps, rngs, dtype)

    def queries_keys_values(
        self, x: Float[Array, "batch length width"], at: Position | None
    ) -> tuple[Queries, Heads, Heads]:
        """Returns queries, keys and values; queries and keys are turned by their positions."""
        q, k, v = super().queries_keys_values(x, at)
        if not self.config.key_bias:
            q, v = (
                part + bias[...].astype(part.dtype).reshape(part.shape[2:])
                for part, bias in ((q, self.q_bias), (v, self.v_bias))
            )
        if self.config.rotary:
            cosine, sine = rotation(self.config)
            here = slice(None) if at is None else slice(at, at + 1)  # `at` is a class token's
            q, k = rotate(q, (cosine[here], sine[here])), rotate(k, (cosine, sine))
        return q, k, v

    def output(
        self, attended: Float[Array, "batch queries width"]
    ) -> Float[Array, "batch queries width"]:
        """Returns the projection of what the heads attended to."""
        return super().output(self.ln(attended) if self.config.swiglu else attended)


def rotation(config: EvaConfig) -> Any:
    """Returns the rotary positions of a tower's tokens, see `rotary.grid_rotation`."""
    return grid_rotation(
        config.side,
        config.width // config.heads,
        reference=config.rotary,
        offset=config.rotary_offset,
        columns_first=config.rotary_columns_first,
        prefix=int(config.class_token),
    )


class EvaBlock(nnx.Module):
    """A residual block of attention and an MLP, with a LayerNorm before or after each of them."""

    def __init__(
        self,
        config: EvaConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        common: dict[str, Any] = dict(init=init, dtype=dtype, rngs=rngs)
        self.post_norm = config.post_norm
        self.ln_1 = layer_norm(config.width, config.eps, rngs, dtype)
        self.attention = EvaAttention(config, **common)
        self.ln_2 = layer_norm(config.width, config.eps, rngs, dtype)
        self.mlp = SwiGLU(config, **common) if config.swiglu else MLP(config, activation, **common)

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
            x = stream + self.ln_1(self.attention(x, causal, mask, at)).astype(x.dtype)
            return x + self.ln_2(self.mlp(x)).astype(x.dtype)
        x = stream + self.attention(self.ln_1(x), causal, mask, at)
        return x + self.mlp(self.ln_2(x))


class Eva(ProjectedModule):
    """A vision Transformer of `EvaBlock`s, pooled by a class token or a learned query."""

    def __init__(
        self,
        config: EvaConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # that of towers which have a choice
        self.config = config
        self.dtype = activation_dtype(dtype)
        width, common = config.width, dict(dtype=dtype, rngs=rngs)
        self.patch_embedding = linear(
            config.patch_size**2 * 3,
            width,
            use_bias=not config.ln_pre,
            init=TORCH,
            axes=("pixels", "patch_features"),
            **common,
        )
        if config.class_token:
            self.class_embedding = nnx.Param(TIMM_TABLE(rngs.params(), (width,)), spec=VECTOR)
        self.positional_embedding = nnx.Param(
            TIMM_TABLE(rngs.params(), (config.tokens, width)), spec=POSITIONS
        )
        if config.ln_pre:
            self.ln_pre = layer_norm(width, config.eps, rngs)
        self.transformer = Transformer(
            config,
            _ACTIVATION,
            block=EvaBlock,
            init=TIMM_BLOCK,
            causal=False,
            remat=remat,
            chunk=chunk,
            **common,
        )
        _shrink_by_depth(self.transformer.blocks, config.layers)
        self.ln_post = layer_norm(width, config.eps, rngs)
        if config.pool == "map":
            self.pool = AttentionPool(
                config.pool_blocks,
                _ACTIVATION,
                init=TIMM_BLOCK,
                probe_init=cut_normal(width**-0.5),
                **common,
            )
        self.projection = projection(config, width, embed_dim, classifier=EVA_CLASSIFIER, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns pooled features before the projection to the embedding space."""
        x = self._tokens(image)
        if self.config.pool == "class":
            return self.ln_post(self.transformer(x, at=0)[:, 0])
        return self.pool(self.ln_post(self.transformer(x)).astype(self.dtype))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the normalised output of the blocks for each patch.

        There is no dropout, and so `key` changes nothing.
        """
        x = self.ln_post(self.transformer(self._tokens(image))).astype(self.dtype)
        pooled = x[:, 0] if self.config.pool == "class" else self.pool(x)
        return self.project(pooled), x[:, int(self.config.class_token) :]

    def after_layer(
        self, image: Num[Array, "batch height width 3"], layer: int
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of a block, counted from 1, for every token."""
        return self.transformer.first(self._tokens(image), layer)

    def _tokens(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the input of the blocks: a class token and the patches, with their positions."""
        x = patches(normalized(image, self.config), self.config.patch_size)
        x = sharding.constrain_rows(self.patch_embedding(x))
        if self.config.class_token:
            x = prepend(self.class_embedding[...].astype(self.dtype), x)
        x = x + self.positional_embedding[...].astype(self.dtype)
        return self.ln_pre(x).astype(self.dtype) if self.config.ln_pre else x


def _shrink_by_depth(blocks: Any, layers: int) -> None:
    """Divides the last layer of both branches of block i, from 1, by √2i, as EVA's code does."""
    factors = (2 * jnp.arange(1, layers + 1)) ** -0.5
    for kernel in (blocks.attention.out.kernel, blocks.mlp.proj.kernel):
        kernel[...] = kernel[...] * factors[:, None, None]
