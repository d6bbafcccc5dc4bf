"""The text Transformer of CLIP (section 2.4; a GPT-2 of 63 M parameters)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clip_jax.models.transformer import Transformer, layer_norm
from clip_jax.models.zoo import TextConfig


class TextTransformer(nnx.Module):
    """Token and position embeddings, causal blocks; read out at the end of the text."""

    def __init__(
        self,
        config: TextConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = dtype
        width = config.width
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Embed(
            config.vocab_size, width, embedding_init=normal(0.02), dtype=dtype, rngs=rngs
        )
        self.positional_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (config.context_length, width))
        )
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.mlp_ratio,
            activation,
            causal=True,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.ln_final = layer_norm(width, rngs)
        self.projection = nnx.Linear(
            width,
            embed_dim,
            use_bias=False,
            kernel_init=normal(width**-0.5),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed_dim"]:
        """Features of token ids, not normalised; the largest id of a row marks the text's end."""
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens a text, this model takes {self.config.context_length}"
            )
        position = self.positional_embedding[: tokens.shape[1]].astype(self.dtype)
        x = self.transformer(self.token_embedding(tokens) + position)
        end = jnp.argmax(tokens, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.ln_final(x))
