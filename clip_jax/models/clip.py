"""CLIP: an image tower and a text tower that meet on a unit sphere."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from clip_jax.models.text import TextTransformer
from clip_jax.models.vit import VisionTransformer
from clip_jax.models.zoo import CLIPConfig, name_of

MAX_LOGIT_SCALE = math.log(100.0)


class Output(NamedTuple):
    """What a batch becomes: unit-norm features (fp32) and the factor on their cosines (≤ 100)."""

    image_features: Float[Array, "images embed_dim"]
    text_features: Float[Array, "texts embed_dim"]
    logit_scale: Float[Array, ""]


def normalize(features: Float[Array, "*batch embed_dim"]) -> Float[Array, "*batch embed_dim"]:
    """Features scaled to length one, in fp32; a zero vector stays zero."""
    features = features.astype(jnp.float32)
    square = jnp.sum(features * features, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class CLIP(nnx.Module):
    """Two towers and a learned temperature (section 2.3).

    Args:
      config: the architecture.
      dtype: one of `zoo.DTYPES`; parameters, LayerNorms and features' norms stay fp32.
      remat: what of a layer is recomputed in the backward pass, see `transformer.Transformer`.
      rngs: where initial values come from.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        common = dict(dtype=dtype, remat=remat, rngs=rngs)
        self.vision = VisionTransformer(
            config.vision, config.embed_dim, config.activation, **common
        )
        self.text = TextTransformer(config.text, config.embed_dim, config.activation, **common)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(
        self,
        image: Num[Array | np.ndarray, "batch height width 3"],
        *,
        normalized: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch embed_dim"]:
        """Image features of uint8 pixels (or of floats normalised already)."""
        features = self.vision(jnp.asarray(image), key=key)
        return normalize(features) if normalized else features

    def encode_text(
        self, tokens: Int[Array | np.ndarray, "batch context"], *, normalized: bool = False
    ) -> Float[Array, "batch embed_dim"]:
        """Text features of token ids."""
        features = self.text(jnp.asarray(tokens))
        return normalize(features) if normalized else features

    def __call__(
        self,
        image: Num[Array | np.ndarray, "images height width 3"],
        tokens: Int[Array | np.ndarray, "texts context"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Output:
        """Unit-norm features of both and the scale; `logits_per_image` is scale · image · textᵀ."""
        return Output(
            self.encode_image(image, normalized=True, key=key),
            self.encode_text(tokens, normalized=True),
            jnp.exp(jnp.minimum(self.logit_scale[...], MAX_LOGIT_SCALE)),
        )

    def __repr__(self) -> str:
        c = self.config
        return (
            f"CLIP({name_of(c) or 'custom'}: "
            f"image {c.vision.image_size}px/{c.vision.patch_size} "
            f"{c.vision.layers}×{c.vision.width}, "
            f"text {c.text.context_length} of {c.text.vocab_size:,} tokens "
            f"{c.text.layers}×{c.text.width}, embed_dim {c.embed_dim}, "
            f"{parameter_count(self):,} parameters)"
        )

    __str__ = __repr__


def parameter_count(model: nnx.Module) -> int:
    """How many numbers a model (or its `nnx.eval_shape`) learns."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
