"""The vision Transformer of CLIP (section 2.4; Dosovitskiy et al. 2020 with one more LayerNorm)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.models.transformer import Transformer, layer_norm
from clip_jax.models.zoo import VisionConfig


def drop_patches(
    patches: Float[Array, "batch patches width"], rate: float, key: Key[Array, ""]
) -> Float[Array, "batch kept width"]:
    """A random subset of each image's patches (FLIP, Li et al. 2022, section 3)."""
    batch, count, _ = patches.shape
    kept = max(1, round(count * (1 - rate)))
    _, index = jax.lax.top_k(jax.random.uniform(key, (batch, count)), kept)
    return jnp.take_along_axis(patches, index[..., None], axis=1)


class VisionTransformer(nnx.Module):
    """Patches, a class token, learned positions, blocks; read out at the class token.

    With `pool="mean"` there is no class token, and the average of the patches is read out.
    """

    def __init__(
        self,
        config: VisionConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = dtype
        width, patch = config.width, config.patch_size
        tokens = (config.image_size // patch) ** 2 + (config.pool == "class")
        scale = nnx.initializers.normal(width**-0.5)
        self.patch_embedding = nnx.Linear(
            patch * patch * 3,
            width,
            use_bias=False,
            kernel_init=nnx.initializers.lecun_normal(),
            dtype=dtype,
            rngs=rngs,
        )
        if config.pool == "class":
            self.class_embedding = nnx.Param(scale(rngs.params(), (width,)))
        self.positional_embedding = nnx.Param(scale(rngs.params(), (tokens, width)))
        self.ln_pre = layer_norm(width, rngs)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.mlp_ratio,
            activation,
            causal=False,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.ln_post = layer_norm(width, rngs)
        self.projection = nnx.Linear(
            width, embed_dim, use_bias=False, kernel_init=scale, dtype=dtype, rngs=rngs
        )

    def _patchify(
        self, image: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch patches pixels"]:
        batch, patch = image.shape[0], self.config.patch_size
        side = self.config.image_size // patch
        grid = image.reshape(batch, side, patch, side, patch, 3).swapaxes(2, 3)
        return grid.reshape(batch, side * side, patch * patch * 3)

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Features of images, not normalised.

        `image` is uint8 in 0…255, normalised here, or floating point and normalised already.
        `key` turns on what is random in training (patch dropout).
        """
        size = self.config.image_size
        if image.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[1:]}, this model takes {(size, size, 3)}")
        if image.dtype == jnp.uint8:
            mean, std = (255 * jnp.array(v) for v in (self.config.mean, self.config.std))
            image = (image.astype(jnp.float32) - mean) / std
        x = self.patch_embedding(self._patchify(image))
        position = self.positional_embedding[...].astype(self.dtype)
        x = x + position[-x.shape[1] :]
        if key is not None and self.config.patch_dropout:
            x = drop_patches(x, self.config.patch_dropout, key)
        if self.config.pool == "class":
            first = self.class_embedding[...].astype(self.dtype) + position[0]
            x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[2])), x], axis=1)
        x = self.transformer(self.ln_pre(x).astype(self.dtype))
        x = x[:, 0] if self.config.pool == "class" else x.mean(axis=1)
        return self.projection(self.ln_post(x))
