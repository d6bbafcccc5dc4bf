"""What the modules of text encoders have in common: which tokens are read out, and a projection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.initializers import TORCH
from clip_jax.models.layers import Linear, linear
from clip_jax.models.projection import MlpProjection, NoProjection

Words = Bool[Array, "batch context"]  # tokens that are no padding


class TextEncoder(nnx.Module):
    """Token ids to the features of a text: those of its first token, or a mean over its tokens.

    A subclass sets `config`, an `EncoderTower`, `dtype` and `projection`.
    """

    config: Any
    dtype: DTypeLike
    projection: Any

    @abstractmethod
    def embedded(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """Returns the input of the first block."""

    @abstractmethod
    def encoded(
        self, x: Float[Array, "batch context width"], words: Words, at: int | None = None
    ) -> Float[Array, "batch positions width"]:
        """Returns the output of the blocks for each token, or for the one at a position."""

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed_dim"]:
        """Returns features of token ids, not normalised. Padding is masked."""
        return self.projection(self.pooled(tokens))

    def pooled(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch width"]:
        """Returns the features of texts before the projection."""
        x, words = self._inputs(tokens)
        if self.config.pool == "mean":
            return _mean(self.encoded(x, words), words).astype(self.dtype)
        return self.encoded(x, words, at=0)[:, 0]

    def token_features(
        self, tokens: Int[Array, "batch context"]
    ) -> Float[Array, "batch context width"]:
        """Returns the output of the last block for each token."""
        return self.encoded(*self._inputs(tokens))

    def _inputs(
        self, tokens: Int[Array, "batch context"]
    ) -> tuple[Float[Array, "batch context width"], Words]:
        """Returns the input of the first block, and which tokens are no padding."""
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens a text, this model takes {self.config.context_length}"
            )
        return self.embedded(tokens), tokens != self.config.pad_id


def encoder_projection(
    config: ProjectedEncoder, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> NoProjection | Linear | MlpProjection:
    """Makes the projection that open_clip puts on an encoder, with torch's initial values."""
    common = dict(dtype=dtype, rngs=rngs)
    if config.projection == "none":
        return NoProjection()
    if config.projection == "mlp":
        hidden = config.projection_hidden(embed_dim)
        return MlpProjection(config.width, hidden, embed_dim, use_bias=False, **common)
    return linear(config.width, embed_dim, use_bias=False, init=TORCH, **common)


def positions_of_words(
    tokens: Int[Array, "batch context"], pad_id: int
) -> Int[Array, "batch context"]:
    """Returns the numbers of the tokens' positions in fairseq's encoders, RoBERTa and NLLB.

    They count from `pad_id` + 1, and only tokens that are no padding; padding has `pad_id`.
    """
    words = tokens != pad_id
    return jnp.cumsum(words, axis=1) * words + pad_id


def _mean(x: Float[Array, "batch context width"], words: Words) -> Float[Array, "batch width"]:
    """Returns the mean over the words, in fp32; zeros for an empty text."""
    total = jnp.sum(x.astype(jnp.float32) * words[..., None], axis=1)
    return total / jnp.maximum(words.sum(axis=1, keepdims=True), 1)
