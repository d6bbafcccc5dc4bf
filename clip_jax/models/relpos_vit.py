"""timm's vision Transformer with relative positions by an MLP, as in Swin V2 (Liu et al. 2022)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import VECTOR
from clip_jax.models.initializers import TORCH, BlockInit, normal
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.relpos_vit_configs import RelPosViTConfig
from clip_jax.models.transformer import Attention, Mask, Position, Transformer
from clip_jax.models.vit import patches, prepend

_BLOCK = BlockInit(TORCH, TORCH, TORCH, TORCH)  # timm leaves these layers as torch makes them


@functools.cache
def distances(
    side: int,
) -> tuple[Float[np.ndarray, "distances 2"], Int[np.ndarray, "places places"]]:
    """Returns all distances of two places of a square grid, and which one each pair has.

    Rows and columns count apart, on a logarithmic scale with a sign.

    Args:
      side: the number of rows, and of columns.
    """
    each = np.arange(1 - side, side)
    each = np.sign(each) * np.log1p(np.abs(each))
    table = np.stack(np.meshgrid(each, each, indexing="ij"), -1).reshape(-1, 2)
    places = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    rows, columns = np.moveaxis(places[:, None] - places[None], -1, 0) + side - 1
    return table.astype(np.float32), rows * (2 * side - 1) + columns


class RelPosAttention(Attention):
    """Self-attention that adds a learned function of the distance of two places to its logits."""

    def __init__(
        self,
        config: RelPosViTConfig,
        *,
        init: BlockInit,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, init=init, bias=bias, dtype=dtype, rngs=rngs)
        self.side = config.side
        common = dict(init=TORCH, dtype=dtype, rngs=rngs)
        self.position_fc = linear(2, config.position_width, **common)
        self.position_proj = linear(config.position_width, config.heads, **common)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        causal: bool,
        mask: Mask | None = None,
        at: Position | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Applies attention, see `Attention`; `at` is the number of one token, for all rows."""
        q, k, v = self.queries_keys_values(x, at)
        logits = self._position_logits()
        logits = logits if at is None else logits[:, at : at + 1]
        attended = jax.nn.dot_product_attention(
            q, k, v, bias=logits[None].astype(q.dtype), mask=mask, is_causal=causal
        )
        return self.output(attended.reshape(*q.shape[:2], x.shape[-1]))

    def _position_logits(self) -> Float[Array, "heads tokens tokens"]:
        """Returns what is added to the logits; nothing is where a token is the class token."""
        table, pairs = distances(self.side)
        each = self.position_proj(jax.nn.relu(self.position_fc(jnp.asarray(table))))
        return jnp.pad(jnp.moveaxis(each[pairs], -1, 0), ((0, 0), (1, 0), (1, 0)))


class RelPosViT(ProjectedModule):
    """A vision Transformer with a class token and `RelPosAttention`."""

    def __init__(
        self,
        config: RelPosViTConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # always GELU
        self.config = config
        self.dtype = activation_dtype(dtype)
        width, common = config.width, dict(dtype=dtype, rngs=rngs)
        self.patch_embedding = linear(
            config.patch_size**2 * 3,
            width,
            init=TORCH,
            axes=("pixels", "patch_features"),
            **common,
        )
        self.class_embedding = nnx.Param(normal(1e-6)(rngs.params(), (width,)), spec=VECTOR)
        self.transformer = Transformer(
            config,
            "gelu",
            init=_BLOCK,
            causal=False,
            attention=RelPosAttention,
            attention_bias=False,
            layer_scale=config.layer_scale,
            remat=remat,
            chunk=chunk,
            **common,
        )
        self.ln_post = layer_norm(width, config.eps, rngs)
        self.projection = projection(config, width, embed_dim, classifier=TORCH, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the class token after the blocks, before the projection."""
        return self.ln_post(self.transformer(self._tokens(image), at=0)[:, 0])

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the normalised output for each patch."""
        x = self.ln_post(self.transformer(self._tokens(image))).astype(self.dtype)
        return self.project(x[:, 0]), x[:, 1:]

    def after_layer(
        self, image: Num[Array, "batch height width 3"], layer: int
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of a block, counted from 1, for every token."""
        return self.transformer.first(self._tokens(image), layer)

    def _tokens(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the input of the blocks: a class token and the patches."""
        x = patches(normalized(image, self.config), self.config.patch_size)
        x = sharding.constrain_rows(self.patch_embedding(x))
        return prepend(self.class_embedding[...].astype(self.dtype), x)
