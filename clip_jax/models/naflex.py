"""SigLIP 2's vision Transformer for images of any shape (NaFlex; Tschannen et al. 2025)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS
from clip_jax.models.initializers import siglip_vision
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.naflex_configs import NaFlexConfig
from clip_jax.models.patches import Places, unpack
from clip_jax.models.transformer import AttentionPool, Transformer

Images = Num[Array, "batch patches bytes"]  # see `models.patches`
Tokens = Float[Array, "batch patches width"]


def axis_weights(
    index: Int[Array, "batch patches"], size: Int[Array, "batch patches"], side: int
) -> Float[Array, "batch patches {side}"]:
    """Returns the weights of the rows (or columns) of a table for those of an image's grid.

    They are those of bilinear interpolation with antialiasing: a triangle of one row of the grid to
    each side, and of one row of the table at least.

    Args:
      index: the row of each patch.
      size: the rows of the grid of its image; 0 for padding, whose weights mean nothing.
      side: the rows of the table.
    """
    scale = side / jnp.maximum(size, 1).astype(jnp.float32)
    center = (index + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(side) - center[..., None])
    weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1)[..., None], 0)
    return weights / weights.sum(axis=-1, keepdims=True)


class NaFlex(nnx.Module):
    """A vision Transformer over the patches of images that each have their own shape.

    Patches of padding are masked in every block and in the pooling, so that neither their number
    nor the other images of a batch change the features of an image.
    """

    def __init__(
        self,
        config: NaFlexConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del embed_dim  # the width
        self.config = config
        self.dtype = activation_dtype(dtype)
        activation = config.activation or activation
        init, common = siglip_vision(config), dict(dtype=dtype, rngs=rngs)
        self.patch_embedding = linear(
            config.patch_size**2 * 3,
            config.width,
            init=init.patches,
            axes=("pixels", "patch_features"),
            **common,
        )
        table = init.embeddings(rngs.params(), (config.positions**2, config.width))
        self.positional_embedding = nnx.Param(table, spec=POSITIONS)
        self.transformer = Transformer(
            config,
            activation,
            init=init.block,
            causal=False,
            remat=remat,
            chunk=chunk,
            **common,
        )
        self.ln_post = layer_norm(config.width, config.eps, rngs)
        self.pool = AttentionPool(config, activation, init=init.block, **common)

    def __call__(
        self, image: Images, *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch width"]:
        """Returns features of images, not normalised.

        Args:
          image: patches with their places, of any number; they are normalised here.
          key: changes nothing: there is no dropout.
        """
        del key
        x, there = self._embedded(image)
        return self.pool(self._encoded(x, there), there[:, None, None])

    def project(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Returns the features of `pooled`, to which nothing is added here."""
        return pooled

    def pooled(
        self, image: Images, *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch width"]:
        """Returns pooled features, which are those of a call."""
        return self(image, key=key)

    def patches(self, image: Images) -> Tokens:
        """Returns what the pooling makes of each patch alone; zeros for padding."""
        x, there = self._embedded(image)
        x = self._encoded(x, there)
        alone = self.pool(x.reshape(-1, 1, x.shape[2])).reshape(x.shape)
        return jnp.where(there[..., None], alone, 0)

    def after_layer(self, image: Images, layer: int) -> Tokens:
        """Returns the output of a block, counted from 1, for every patch; zeros for padding."""
        x, there = self._embedded(image)
        x = self.transformer.first(x, layer, there[:, None, None])
        return jnp.where(there[..., None], x, 0)

    def _encoded(self, x: Tokens, there: Bool[Array, "batch patches"]) -> Tokens:
        return self.ln_post(self.transformer(x, there[:, None, None])).astype(self.dtype)

    def _embedded(self, image: Images) -> tuple[Tokens, Bool[Array, "batch patches"]]:
        """Returns the input of the blocks, and which patches are no padding.

        Raises:
          ValueError: the images are not of this tower's patches.
        """
        config = self.config
        if image.dtype != jnp.uint8 or not config.takes(image.shape[1:]):
            raise ValueError(
                f"images are {image.dtype} {image.shape[1:]}, this model takes uint8 "
                f"{config.input_shape}, as its preprocessing makes them"
            )
        pixels, places = unpack(image)
        count = config.patch_size**2
        mean, std = (jnp.tile(255 * jnp.array(v), count) for v in (config.mean, config.std))
        x = self.patch_embedding((pixels.astype(jnp.float32) - mean) / std)
        x = sharding.constrain_rows(x)
        return x + self._positions(places).astype(self.dtype), places.rows > 0

    def _positions(self, places: Places) -> Tokens:
        """Returns the position of each patch, from a table resized to the grid of its image."""
        side = self.config.positions
        rows = axis_weights(places.row, places.rows, side)
        columns = axis_weights(places.column, places.columns, side)
        weights = rows[..., :, None] * columns[..., None, :]
        table: Array = self.positional_embedding[...]
        return weights.reshape(*rows.shape[:2], side * side) @ table.astype(jnp.float32)
