"""BERT (Devlin et al. 2018): the text tower of ALIGN, and of sentence encoders such as MiniLM."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, ParamSpec
from clip_jax.models.initializers import (
    BERT_BLOCK,
    BERT_LINEAR,
    BERT_NORMAL,
    XAVIER_UNIFORM,
    LinearInit,
)
from clip_jax.models.layers import activation_dtype, embedding, layer_norm, linear
from clip_jax.models.model_config import BertConfig
from clip_jax.models.transformer import Transformer

_SEGMENTS = ParamSpec((None, None), decay=True)


class BERT(nnx.Module):
    """The BERT encoder: token, position and segment embeddings, and post-norm blocks.

    The output is that of the first token, [CLS], or the mean over all tokens of the text."""

    def __init__(
        self,
        config: BertConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = activation_dtype(dtype)
        width = config.width
        self.token_embedding = embedding(
            config.vocab_size, width, init=BERT_NORMAL, dtype=dtype, rngs=rngs
        )
        self.positional_embedding = nnx.Param(
            BERT_NORMAL(rngs.params(), (config.positions, width)), spec=POSITIONS
        )
        self.segment_embedding = nnx.Param(
            BERT_NORMAL(rngs.params(), (config.token_types, width)), spec=_SEGMENTS
        )
        self.ln_embedding = layer_norm(width, config.eps, rngs)
        self.transformer = Transformer(
            config,
            config.activation or activation,
            init=BERT_BLOCK,
            causal=False,
            post_norm=True,
            dtype=dtype,
            remat=remat,
            chunk=chunk,
            rngs=rngs,
        )
        common = dict(dtype=dtype, rngs=rngs)
        if config.pooler:
            self.pooler = linear(width, width, init=BERT_LINEAR, **common)
        self.projection = linear(
            width,
            embed_dim,
            use_bias=config.projection_bias,
            init=LinearInit(XAVIER_UNIFORM),  # as in transformers; ALIGN's paper does not state it
            **common,
        )

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed_dim"]:
        """Returns features of token ids that start with [CLS], not normalised.

        Padding is masked.
        """
        x, text = self._embedded(tokens)
        mask = text[:, None, None, :]
        if self.config.pool == "first":
            return self.projection(self.transformer(x, mask, at=0)[:, 0])
        return self.projection(_mean(self.transformer(x, mask), text).astype(self.dtype))

    def token_features(
        self, tokens: Int[Array, "batch context"]
    ) -> Float[Array, "batch context width"]:
        """Returns the output of the last block for each token."""
        x, text = self._embedded(tokens)
        return self.transformer(x, text[:, None, None, :])

    def _embedded(
        self, tokens: Int[Array, "batch context"]
    ) -> tuple[Float[Array, "batch context width"], Bool[Array, "batch context"]]:
        """Returns the input of the first block, and which tokens are no padding."""
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens a text, this model takes {self.config.context_length}"
            )
        positions = self.positional_embedding[: tokens.shape[1]] + self.segment_embedding[0]
        table = self.token_embedding.embedding[...]
        x = sharding.embed_tokens(table, tokens, self.dtype) + positions.astype(self.dtype)
        return self.ln_embedding(x).astype(self.dtype), tokens != self.config.pad_id


def _mean(
    x: Float[Array, "batch context width"], mask: Bool[Array, "batch context"]
) -> Float[Array, "batch width"]:
    """Returns the mean over the positions of a mask, in fp32; zeros for an empty text."""
    total = jnp.sum(x.astype(jnp.float32) * mask[..., None], axis=1)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
