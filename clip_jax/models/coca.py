"""The towers of CoCa (Yu et al. 2022), as open_clip builds them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from clip_jax.distributed.param_spec import VECTOR, ParamSpec
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig
from clip_jax.models.cross_attention import CrossAttention
from clip_jax.models.initializers import (
    TORCH_KERNEL,
    XAVIER_UNIFORM,
    LinearInit,
    normal,
    xavier_pair,
)
from clip_jax.models.layers import layer_norm, linear
from clip_jax.models.text import TextTransformer
from clip_jax.models.vit import VisionTransformer

_QUERIES = ParamSpec((None, None), decay=True)


class QueryPool(nnx.Module):
    """Learned queries that attend to the places of an image."""

    def __init__(self, config: CoCaVisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width = config.pool_width
        self.queries = nnx.Param(
            normal(1.0)(rngs.params(), (config.pool_queries, width)), spec=_QUERIES
        )
        self.ln_q = layer_norm(width, config.eps, rngs)
        self.ln_k = layer_norm(config.width, config.eps, rngs, dtype)
        self.attention = CrossAttention(
            width,
            config.pool_heads,
            inputs=config.width,
            q=LinearInit(XAVIER_UNIFORM),
            kv=LinearInit(xavier_pair(config.width, width)),
            out=LinearInit(TORCH_KERNEL),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch places width"]
    ) -> Float[Array, "batch queries pool_width"]:
        """Returns what each query reads. The queries are projected once for all images."""
        attention = self.attention
        memory = attention.keys_and_values(self.ln_k(x))
        query = attention.q(self.ln_q(self.queries[...]))
        query = jnp.broadcast_to(query.astype(memory[0].dtype), (x.shape[0], *query.shape))
        return attention.attend(query, memory)


class CoCaVision(VisionTransformer):
    """A vision Transformer whose output is read by learned queries, the first of them pooled."""

    config: CoCaVisionConfig

    def _add_pool(
        self, embed_dim: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Adds the layers after the blocks."""
        config: Any = self.config
        self.pool = QueryPool(config, dtype=dtype, rngs=rngs)
        self.ln_post = layer_norm(config.pool_width, config.eps, rngs)
        self.projection = linear(
            config.pool_width,
            embed_dim,
            use_bias=False,
            init=LinearInit(normal(config.width**-0.5)),
            dtype=dtype,
            rngs=rngs,
        )

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns what the first query reads, before the projection to the embedding space."""
        return self._queries(image, key)[:, 0]

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and what the other queries read."""
        x = self._queries(image, key)
        return self.project(x[:, 0]), x[:, 1:]

    def _queries(
        self, image: Num[Array, "batch height width 3"], key: Key[Array, " batch"] | None
    ) -> Float[Array, "batch queries pool_width"]:
        x = self.pool(self.transformer(self._embedded(image, key)))
        return self.ln_post(x).astype(self.dtype)


class CoCaText(TextTransformer):
    """A causal text Transformer with a class token after the text."""

    def __init__(
        self,
        config: CoCaTextConfig,
        embed_dim: int,
        activation: str,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        super().__init__(config, embed_dim, activation, rngs=rngs, **options)
        self.pad_id = config.pad_id
        self.class_embedding = nnx.Param(normal(0.01)(rngs.params(), (config.width,)), spec=VECTOR)

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed_dim"]:
        """Returns features of token ids, not normalised."""
        x, mask = self._with_class(tokens)
        x = self.transformer(x, mask, at=x.shape[1] - 1)[:, 0]
        return self.projection(self.ln_final(x))

    def features_and_words(
        self, tokens: Int[Array, "batch context"]
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch context width"]]:
        """Returns the features of a call, and the output of the blocks for each token."""
        x = self.transformer(*self._with_class(tokens))
        return self.projection(self.ln_final(x[:, -1])), x[:, :-1]

    def _with_class(
        self, tokens: Int[Array, "batch context"]
    ) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch 1 1 length"]]:
        """Returns the input of the blocks, and the positions that may be attended to.

        These are the first one, and each that follows a token which is no padding, as open_clip's
        published weights were trained: the class token does not see itself after a padded text.
        """
        x = self._embedded(tokens)
        last = jnp.broadcast_to(
            self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2])
        )
        x = jnp.concatenate([x, last], axis=1)
        x = x + self.positional_embedding[: x.shape[1]].astype(self.dtype)
        mask = jnp.pad(tokens != self.pad_id, ((0, 0), (1, 0)), constant_values=True)
        return x, mask[:, None, None]
