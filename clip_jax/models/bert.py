"""BERT (Devlin et al. 2018), the text tower of ALIGN and of sentence encoders, and RoBERTa."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, ParamSpec
from clip_jax.models.encoder import TextEncoder, Words, encoder_projection, positions_of_words
from clip_jax.models.initializers import (
    BERT_BLOCK,
    BERT_LINEAR,
    BERT_NORMAL,
    XAVIER_UNIFORM,
    LinearInit,
)
from clip_jax.models.layers import activation_dtype, embedding, layer_norm, linear
from clip_jax.models.model_config import BertConfig, RobertaConfig
from clip_jax.models.transformer import Transformer

_SEGMENTS = ParamSpec((None, None), decay=True)


class BERT(TextEncoder):
    """The BERT encoder: token, position and segment embeddings, and post-norm blocks.

    The output is that of the first token, [CLS], or the mean over all tokens of the text."""

    def __init__(
        self,
        config: BertConfig | RobertaConfig,
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
        if config.pooler:
            self.pooler = linear(width, width, init=BERT_LINEAR, dtype=dtype, rngs=rngs)
        self._add_projection(embed_dim, dtype=dtype, rngs=rngs)

    def _add_projection(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.projection = linear(
            self.config.width,
            embed_dim,
            use_bias=self.config.projection_bias,
            init=LinearInit(XAVIER_UNIFORM),  # as in transformers; ALIGN's paper does not state it
            dtype=dtype,
            rngs=rngs,
        )

    def embedded(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """Returns the input of the first block."""
        positions = self._positions(tokens) + self.segment_embedding[0]
        table = self.token_embedding.embedding[...]
        x = sharding.embed_tokens(table, tokens, self.dtype) + positions.astype(self.dtype)
        return self.ln_embedding(x).astype(self.dtype)

    def encoded(
        self, x: Float[Array, "batch context width"], words: Words, at: int | None = None
    ) -> Float[Array, "batch positions width"]:
        """Returns the output of the blocks for each token, or for the one at a position."""
        return self.transformer(x, words[:, None, None, :], at=at)

    def _positions(
        self, tokens: Int[Array, "batch context"]
    ) -> Float[Array, "*batch context width"]:
        """Returns the embeddings of the tokens' positions."""
        return self.positional_embedding[: tokens.shape[1]]


class RoBERTa(BERT):
    """RoBERTa (Liu et al. 2019): a BERT that counts positions otherwise, without segments.

    It projects the output as open_clip does, see `RobertaConfig.pool`.
    """

    def pooled(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch width"]:
        """Returns the features of texts before the projection."""
        x = TextEncoder.pooled(self, tokens)
        return jnp.tanh(self.pooler(x)) if self.config.pool == "tanh" else x

    def _add_projection(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.projection = encoder_projection(self.config, embed_dim, dtype=dtype, rngs=rngs)

    def _positions(
        self, tokens: Int[Array, "batch context"]
    ) -> Float[Array, "*batch context width"]:
        return self.positional_embedding[...][positions_of_words(tokens, self.config.pad_id)]
