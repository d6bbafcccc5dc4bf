"""The encoder of M2M-100 (Fan et al. 2020), whose pretrained one is that of NLLB-200."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clip_jax.distributed import sharding
from clip_jax.models.encoder import TextEncoder, Words, encoder_projection, positions_of_words
from clip_jax.models.encoder_configs import M2MConfig
from clip_jax.models.initializers import BERT_BLOCK, BERT_NORMAL
from clip_jax.models.layers import activation_dtype, embedding, layer_norm
from clip_jax.models.transformer import Transformer

_LONGEST_WAVE = 10_000


def sinusoids(
    positions: Int[Array, "batch context"], width: int
) -> Float[Array, "batch context width"]:
    """Returns sines, then cosines, of positions at frequencies from 1 to 1/10,000.

    Source: tensor2tensor; section 3.5 of Vaswani et al. 2017 has them by turns.
    """
    half = width // 2
    frequencies = jnp.exp(jnp.arange(half) * (-math.log(_LONGEST_WAVE) / (half - 1)))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class M2MEncoder(TextEncoder):
    """The encoder: scaled token embeddings, sinusoids of positions, pre-norm blocks, a LayerNorm.

    The first token of a text names its language.
    """

    def __init__(
        self,
        config: M2MConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # it has a ReLU
        self.config = config
        self.dtype = activation_dtype(dtype)
        common = dict(dtype=dtype, rngs=rngs)
        self.token_embedding = embedding(
            config.vocab_size, config.width, init=BERT_NORMAL, **common
        )
        self.transformer = Transformer(
            config, "relu", init=BERT_BLOCK, causal=False, remat=remat, chunk=chunk, **common
        )
        self.ln_final = layer_norm(config.width, config.eps, rngs)
        self.projection = encoder_projection(config, embed_dim, **common)

    def embedded(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """Returns the input of the first block."""
        width = self.config.width
        x = sharding.embed_tokens(self.token_embedding.embedding[...], tokens, self.dtype)
        positions = sinusoids(positions_of_words(tokens, self.config.pad_id), width)
        return x * math.sqrt(width) + positions.astype(self.dtype)

    def encoded(
        self, x: Float[Array, "batch context width"], words: Words, at: int | None = None
    ) -> Float[Array, "batch positions width"]:
        """Returns the output of the blocks for each token, or for the one at a position."""
        x = self.transformer(x, words[:, None, None, :], at=at)
        return self.ln_final(x).astype(self.dtype)
