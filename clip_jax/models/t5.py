"""The encoder of T5 (Raffel et al. 2019) with gated MLPs, as in mT5 (Xue et al. 2020)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import ParamSpec
from clip_jax.models.encoder import TextEncoder, Words, encoder_projection
from clip_jax.models.encoder_configs import T5Config
from clip_jax.models.gated_mlp import GatedMLP
from clip_jax.models.initializers import BlockInit, normal, t5_block
from clip_jax.models.layers import activation_dtype, embedding, rms_norm
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.tower import hidden_width
from clip_jax.models.transformer import Attention, Mask, take_position

_BUCKETS = ParamSpec((None, None), decay=True)
Bias = Float[Array, "1 heads rows keys"]


def buckets(length: int, count: int, max_distance: int) -> Int[np.ndarray, "length length"]:
    """Returns the number of the range of each key's position relative to each query's.

    The first half of the ranges is for keys that do not follow the query, the second for those that
    do. Half of each are single distances, and the others grow by a factor up to `max_distance`.
    """
    place = np.arange(length)
    relative = place[None, :] - place[:, None]
    distance, each = np.abs(relative), count // 2
    single = each // 2
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single))
    scale = np.float32(np.log(max_distance / single))
    far = single + (growth / scale * np.float32(each - single)).astype(np.int32)
    number = np.where(distance < single, distance, np.minimum(far, each - 1))
    return number + np.where(relative > 0, each, 0)


class RelativeAttention(Attention):
    """Self-attention without biases whose logits are not scaled, but shifted by positions."""

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "batch length width"],
        bias: Bias,
        mask: Mask,
        at: int | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Applies attention to the keys that `mask` allows, of all queries or those of one place.

        `bias` is what is added to the logits of these queries.
        """
        q, k, v = self.queries_keys_values(x, at)
        attended = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=1.0)
        return self.output(attended.reshape(*q.shape[:2], x.shape[-1]))


class T5MLP(GatedMLP):
    """An MLP without biases whose hidden layer is gated by a GELU."""

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP to each position."""
        return self.proj(jax.nn.gelu(self.gate(x), approximate=True) * self.fc(x))


class T5Block(nnx.Module):
    """A residual block: attention, then MLP, with a norm before each."""

    def __init__(
        self, config: T5Config, *, init: BlockInit, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        common = dict(init=init, dtype=dtype, rngs=rngs)
        self.norm_1 = rms_norm(config.width, config.eps, rngs)
        self.attention = RelativeAttention(config, bias=False, out_bias=False, **common)
        self.norm_2 = rms_norm(config.width, config.eps, rngs)
        self.mlp = T5MLP(config, use_bias=False, **common)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        bias: Bias,
        mask: Mask,
        at: int | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Returns the residual stream after attention and MLP; with `at`, at one position a row."""
        stream = x if at is None else take_position(x, at)
        bias = bias if at is None else bias[:, :, at : at + 1]
        x = stream + self.attention(self.norm_1(x), bias, mask, at)
        return x + self.mlp(self.norm_2(x))


class T5Blocks(nnx.Module):
    """The blocks, stacked on a leading axis, and the biases by relative positions that they share.

    `remat` names what the backward pass recomputes, see `transformer.Transformer`.
    """

    def __init__(self, config: T5Config, *, dtype: DTypeLike, remat: str, rngs: nnx.Rngs) -> None:
        self.config = config
        self.remat = check_remat(remat)
        width = config.width
        init = t5_block(width, hidden_width(config), width // config.heads)
        self.blocks = stack(partial(T5Block, config, init=init, dtype=dtype), config.layers, rngs)
        self.relative_bias = nnx.Param(
            normal(width**-0.5)(rngs.params(), (config.buckets, config.heads)), spec=_BUCKETS
        )

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Mask, at: int | None = None
    ) -> Float[Array, "batch positions width"]:
        """Applies all blocks; with `at`, the result is only that position of each row."""
        config = self.config
        numbers = buckets(x.shape[1], config.buckets, config.max_distance)
        bias = self.relative_bias[...][numbers].transpose(2, 0, 1)[None]

        def apply(block: T5Block, x: Array, bias: Bias, mask: Mask) -> Array:
            return block(x, bias, mask)

        def apply_last(block: T5Block, x: Array, bias: Bias, mask: Mask) -> Array:
            return block(x, bias, mask, at)

        last = None if at is None else apply_last
        return scan(self.blocks, x, apply, self.remat, rest=(bias, mask), last=last)


class T5Encoder(TextEncoder):
    """The encoder: token embeddings without positions, blocks, and a norm."""

    def __init__(
        self,
        config: T5Config,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # its gates have their own
        self.config = config
        self.dtype = activation_dtype(dtype)
        common = dict(dtype=dtype, rngs=rngs)
        self.token_embedding = embedding(
            config.vocab_size, config.width, init=normal(1.0), **common
        )
        self.transformer = T5Blocks(config, remat=remat, **common)
        self.norm_final = rms_norm(config.width, config.eps, rngs)
        self.projection = encoder_projection(config, embed_dim, **common)

    def embedded(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """Returns the input of the first block."""
        return sharding.embed_tokens(self.token_embedding.embedding[...], tokens, self.dtype)

    def encoded(
        self, x: Float[Array, "batch context width"], words: Words, at: int | None = None
    ) -> Float[Array, "batch positions width"]:
        """Returns the output of the blocks for each token, or for the one at a position."""
        x = self.transformer(x, words[:, None, None, :], at=at)
        return self.norm_final(x).astype(self.dtype)
