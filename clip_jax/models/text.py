"""CLIP's text towers: a Transformer (section 2.4), or a bag of words (section 2.3)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS
from clip_jax.models.initializers import text_init
from clip_jax.models.layers import activation_dtype, embedding, layer_norm, linear
from clip_jax.models.model_config import TextConfig
from clip_jax.models.transformer import Transformer


class TextTransformer(nnx.Module):
    """A text Transformer: token and position embeddings, and blocks.

    The output is that of the last token. With `layers=0` the tower is a bag of words (CBOW): the
    mean of the token embeddings.
    """

    def __init__(
        self,
        config: TextConfig,
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
        init = text_init(config)
        self.token_embedding = embedding(
            config.vocab_size, width, init=init.tokens, dtype=dtype, rngs=rngs
        )
        if config.layers:
            self.positional_embedding = nnx.Param(
                init.positions(rngs.params(), (config.positions, width)), spec=POSITIONS
            )
            self.transformer = Transformer(
                config,
                config.activation or activation,
                init=init.block,
                causal=config.causal,
                dtype=dtype,
                remat=remat,
                chunk=chunk,
                rngs=rngs,
            )
        self.ln_final = layer_norm(width, config.eps, rngs)
        if config.projection:
            self.projection = linear(
                width,
                embed_dim,
                use_bias=config.projection_bias,
                init=init.projection,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed_dim"]:
        """Returns features of token ids, not normalised.

        The largest id of a row is the end of the text, or the first `eos_id`. A tower with
        `pool="last"` needs full rows, padding included, as in its training.
        """
        x = self._embedded(tokens)
        end = self._end(tokens)
        x = self._read_out(x, end) if self.config.layers else _mean(x, end)
        pooled = self.ln_final(x)
        return self.projection(pooled) if self.config.projection else pooled

    def _end(self, tokens: Int[Array, "batch context"]) -> Int[Array, " batch"]:
        """Returns the position of each row whose output is read."""
        if self.config.pool == "last":
            return jnp.full(tokens.shape[0], tokens.shape[1] - 1)
        if self.config.pool == "eos":
            return jnp.argmax(tokens == self.config.eos_id, axis=-1)
        return jnp.argmax(tokens, axis=-1)

    def _embedded(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """Returns the embeddings of tokens, without positions."""
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens a text, this model takes {self.config.context_length}"
            )
        return sharding.embed_tokens(self.token_embedding.embedding[...], tokens, self.dtype)

    def _read_out(
        self, x: Float[Array, "batch context width"], end: Int[Array, " batch"]
    ) -> Float[Array, "batch width"]:
        """Returns the output of the blocks at the end of each text."""
        x = x + self.positional_embedding[: x.shape[1]].astype(self.dtype)
        return self.transformer(x, at=end)[:, 0]


def _mean(
    x: Float[Array, "batch context width"], end: Int[Array, " batch"]
) -> Float[Array, "batch width"]:
    """Returns the mean of the tokens between start and end; zero if there are none."""
    position = jnp.arange(x.shape[1])
    inside = ((position > 0) & (position < end[:, None]))[..., None]
    return jnp.sum(x * inside, axis=1) / jnp.maximum(end - 1, 1)[:, None].astype(x.dtype)
