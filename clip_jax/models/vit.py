"""The vision Transformer of CLIP (section 2.4; Dosovitskiy et al. 2020 with one more LayerNorm)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, VECTOR, ParamSpec
from clip_jax.models.initializers import LinearInit, vision_init
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.model_config import VisionConfig
from clip_jax.models.pixels import normalized
from clip_jax.models.transformer import ACTIVATIONS, AttentionPool, Transformer

_REGISTERS = ParamSpec((None, None), decay=True)


def drop_patches(
    patches: Float[Array, "batch patches width"], rate: float, keys: Key[Array, " batch"]
) -> Float[Array, "batch kept width"]:
    """Returns a random subset of each image's patches (FLIP, Li et al. 2022, section 3)."""
    count = patches.shape[1]
    size = max(1, round(count * (1 - rate)))
    scores = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
    _, index = jax.lax.top_k(scores, size)
    return jnp.take_along_axis(patches, index[..., None], axis=1)


def patches(
    image: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches pixels"]:
    """Returns the non-overlapping squares of an image, row by row, each as one vector.

    Pixels at the right and bottom edges that fill no square are dropped.
    """
    batch, height, width, channels = image.shape
    rows, columns = height // size, width // size
    image = image[:, : rows * size, : columns * size]
    grid = image.reshape(batch, rows, size, columns, size, channels)
    return grid.swapaxes(2, 3).reshape(batch, rows * columns, size * size * channels)


def windows(
    image: Float[Array, "batch height width channels"], size: int, stride: int
) -> Float[Array, "batch rows columns pixels"]:
    """Returns overlapping squares of an image, whose product with a kernel is a convolution.

    On a CPU the product is several times as fast as XLA's convolution, forward and backward.

    Args:
      image: the image.
      size: the side of a square in pixels.
      stride: the distance of the centres of neighbouring squares.
    """
    margin = (size - stride + 1) // 2
    rows, columns = image.shape[1] // stride, image.shape[2] // stride
    image = jnp.pad(image, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    ends = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    return jnp.concatenate(
        [
            image[:, top : top + ends[0] : stride, left : left + ends[1] : stride]
            for top in range(size)
            for left in range(size)
        ],
        axis=-1,
    )


def prepend(
    first: Float[Array, " width"], x: Float[Array, "batch tokens width"]
) -> Float[Array, "batch more width"]:
    """Returns the tokens of each row after one that is the same for all, such as a class token."""
    return jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[2])), x], axis=1)


class ConvolutionalStem(nnx.Module):
    """Two convolutions to a grid twice as fine as the patches (Xiao et al. 2021, section 4)."""

    def __init__(
        self,
        config: VisionConfig,
        activation: str,
        *,
        init: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        self.size = config.patch_size
        width, pixels = config.stem, config.patch_size**2 * 3
        self.first = linear(pixels, width, init=init, dtype=dtype, rngs=rngs)
        self.second = linear(9 * width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, image: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns stem"]:
        """Returns a grid of features, two by two for each patch."""
        activate = ACTIVATIONS[self.activation]
        x = activate(self.first(windows(image, self.size, self.size // 2)))
        return x + activate(self.second(windows(x, 3, 1)))


class VisionTransformer(nnx.Module):
    """A vision Transformer: patches with learned positions, blocks, and pooling.

    A class token, the mean of the patches or a learned query pools the output of the blocks.
    """

    def __init__(
        self,
        config: VisionConfig,
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
        activation = config.activation or activation
        width, patch = config.width, config.patch_size
        tokens = (config.image_size // patch) ** 2 + config.class_tokens
        init = vision_init(config)
        common = dict(dtype=dtype, rngs=rngs)
        if config.stem:
            self.stem = ConvolutionalStem(config, activation, init=init.patches, **common)
        self.patch_embedding = linear(
            4 * config.stem or patch * patch * 3,
            width,
            use_bias=config.patch_bias,
            init=init.patches,
            axes=("pixels", "patch_features"),
            **common,
        )
        if config.class_tokens:
            self.class_embedding = nnx.Param(init.embeddings(rngs.params(), (width,)), spec=VECTOR)
        self.positional_embedding = nnx.Param(
            init.embeddings(rngs.params(), (tokens, width)), spec=POSITIONS
        )
        if config.registers:
            self.registers = nnx.Param(
                init.embeddings(rngs.params(), (config.registers, width)), spec=_REGISTERS
            )
        if config.ln_pre:
            self.ln_pre = layer_norm(width, config.eps, rngs)
        self.transformer = Transformer(
            config,
            activation,
            init=init.block,
            causal=False,
            layer_scale=config.layer_scale,
            attention_bias=config.attention_bias,
            remat=remat,
            chunk=chunk,
            **common,
        )
        self._add_pool(embed_dim, activation, dtype=dtype, rngs=rngs)

    def _add_pool(
        self, embed_dim: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Adds the layers after the blocks."""
        config, init, common = self.config, vision_init(self.config), dict(dtype=dtype, rngs=rngs)
        self.ln_post = layer_norm(config.width, config.eps, rngs)
        if config.pool == "map":
            self.pool = AttentionPool(config, activation, init=init.block, **common)
        if config.projection:
            self.projection = linear(
                config.width,
                embed_dim,
                use_bias=config.projection_bias,
                init=init.projection,
                **common,
            )

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Returns features of images, not normalised.

        Args:
          image: uint8 in 0…255, which is normalised here, or floats that are normalised already.
          key: one key for each image, given in training only: it turns on patch dropout.
        """
        return self.project(self.pooled(image, key=key))

    def project(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch embed_dim"]:
        """Projects pooled features to the embedding space; without a projection they stay as is."""
        return self.projection(pooled) if self.config.projection else pooled

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns pooled features before the projection to the embedding space.

        Linear probes use them (appendix A.3 of the paper).
        """
        x = self._embedded(image, key)
        if self.config.pool == "class":
            return self.ln_post(self.transformer(x, at=0)[:, 0])
        return self._pool(self._without_registers(self.transformer(x)))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the output of the blocks for each patch.

        The latter goes through the last LayerNorm, too. Patches that patch dropout drops are left
        out.
        """
        x = self._without_registers(self.transformer(self._embedded(image, key)))
        if self.config.pool == "class":
            x = self.ln_post(x).astype(self.dtype)
            return self.project(x[:, 0]), x[:, 1:]
        return self.project(self._pool(x)), self._patches(self.ln_post(x).astype(self.dtype))

    def after_layer(
        self, image: Num[Array, "batch height width 3"], layer: int
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of a block, counted from 1, for every token."""
        return self.transformer.first(self._embedded(image, None), layer)

    def _embedded(
        self, image: Num[Array, "batch height width 3"], key: Key[Array, " batch"] | None
    ) -> Float[Array, "batch tokens features"]:
        x = self._tokens(normalized(image, self.config), key)
        return self.ln_pre(x).astype(self.dtype) if self.config.ln_pre else x

    def _without_registers(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch kept width"]:
        return x[:, : -self.config.registers] if self.config.registers else x

    def _pool(self, x: Float[Array, "batch patches width"]) -> Float[Array, "batch width"]:
        """Pools the output of the blocks, where no class token does it."""
        if self.config.pool == "map":
            return self.pool(self.ln_post(x).astype(self.dtype))
        if self.config.ln_before_pool:
            return self._patches(self.ln_post(x)).mean(axis=1)
        return self.ln_post(self._patches(x).mean(axis=1))

    def _patches(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch kept width"]:
        """Returns the tokens without a class token that is not pooled."""
        return x[:, 1:] if self.config.unpooled_class else x

    def _tokens(
        self, image: Float[Array, "batch height width 3"], key: Key[Array, " batch"] | None
    ) -> Float[Array, "batch tokens features"]:
        """Returns the input of the blocks: class token, patches with positions, registers."""
        if self.config.stem:
            x = self.patch_embedding(patches(self.stem(image), 2))
        else:
            x = self.patch_embedding(patches(image, self.config.patch_size))
        x = sharding.constrain_rows(x)
        position = self.positional_embedding[...].astype(self.dtype)
        x = x + position[-x.shape[1] :]
        if key is not None and self.config.patch_dropout:
            x = drop_patches(x, self.config.patch_dropout, key)
        if self.config.class_tokens:
            first = self.class_embedding[...].astype(self.dtype) + position[0]
            x = prepend(first, x)
        if self.config.registers:
            registers = self.registers[...].astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(registers, (x.shape[0], *registers.shape))], 1)
        return x
