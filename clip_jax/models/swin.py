"""The Swin Transformer (Liu et al. 2021): attention inside windows, some of which are shifted."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import ParamSpec
from clip_jax.models.convolution import Image, Result
from clip_jax.models.initializers import TIMM_BLOCK, TIMM_LINEAR, TIMM_TABLE, TORCH
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.swin_configs import StageSizes, SwinConfig
from clip_jax.models.transformer import MLP, Attention
from clip_jax.models.vit import patches

Windows = Float[Array, "windows places channels"]
Mask = Bool[Array, "windows_of_image places places"]


def relative_positions(window: int) -> Int[np.ndarray, "places places"]:
    """Returns for each place of a window, and each other place, a row of the table of positions.

    Rows count the differences of rows, and then those of columns, from the least up.
    """
    places = np.stack(np.divmod(np.arange(window**2), window), -1)
    difference = places[:, None] - places[None] + window - 1
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]


def shifted_mask(side: int, window: int, shift: int) -> Bool[np.ndarray, "windows places places"]:
    """Returns which places of each window are neighbours in the image before it was shifted.

    The last windows hold rows and columns of both of its ends.
    """
    ends = np.searchsorted([side - window, side - shift], np.arange(side), side="right")
    part = 3 * ends[:, None] + ends[None]
    count = side // window
    part = part.reshape(count, window, count, window).swapaxes(1, 2).reshape(-1, window**2)
    return part[:, :, None] == part[:, None, :]


def to_windows(x: Image, window: int) -> Windows:
    """Returns the squares of `window` × `window` places of an image, row by row."""
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // window, window, columns // window, window, width)
    count = batch * (rows // window) * (columns // window)
    return x.swapaxes(2, 3).reshape(count, window**2, width)


def from_windows(x: Windows, side: int, window: int) -> Image:
    """Returns the images whose squares `to_windows` returns."""
    count = side // window
    x = x.reshape(x.shape[0] // count**2, count, count, window, window, x.shape[-1])
    return x.swapaxes(2, 3).reshape(x.shape[0], side, side, x.shape[-1])


class WindowAttention(Attention):
    """Self-attention with a learned bias for each head and each difference of places."""

    def __init__(self, config: StageSizes, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, init=TIMM_BLOCK, dtype=dtype, rngs=rngs)
        self.window = config.window
        self.positions = nnx.Param(
            TIMM_TABLE(rngs.params(), ((2 * config.window - 1) ** 2, config.heads)),
            spec=ParamSpec((None, None), decay=False),
        )

    def within(self, x: Windows, mask: Mask | None) -> Windows:
        """Applies attention inside each window, to the places that `mask` allows."""
        q, k, v = self.queries_keys_values(x, None)
        bias = self.positions[...][relative_positions(self.window)].transpose(2, 0, 1)
        if mask is not None:  # the same for each image
            images = x.shape[0] // mask.shape[0]
            mask = jnp.broadcast_to(mask, (images, *mask.shape))
            mask = mask.reshape(x.shape[0], 1, *mask.shape[2:])
        attended = jax.nn.dot_product_attention(q, k, v, bias[None].astype(q.dtype), mask)
        return self.output(attended.reshape(x.shape))


class SwinBlock(nnx.Module):
    """A residual block: attention inside windows, then an MLP, each after a LayerNorm."""

    def __init__(self, config: StageSizes, shift: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.side, self.window, self.shift = config.side, config.window, shift
        self.ln_1 = layer_norm(config.width, config.eps, rngs, dtype)
        self.attention = WindowAttention(config, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config.width, config.eps, rngs, dtype)
        self.mlp = MLP(config, "gelu", init=TIMM_BLOCK, dtype=dtype, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        """Applies the block to an image, whose windows are shifted up and to the left."""
        y, mask = self.ln_1(x).astype(x.dtype), None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = jnp.asarray(shifted_mask(self.side, self.window, self.shift))
        y = self.attention.within(to_windows(y, self.window), mask)
        y = from_windows(y, self.side, self.window)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.ln_2(x))


class SwinPair(nnx.Module):
    """Two blocks, of which the second shifts its windows."""

    def __init__(self, config: StageSizes, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.plain = SwinBlock(config, 0, dtype=dtype, rngs=rngs)
        self.shifted = SwinBlock(config, config.shift, dtype=dtype, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        """Applies both blocks."""
        return self.shifted(self.plain(x))


class Merge(nnx.Module):
    """A LayerNorm and a matrix over each 2 × 2 places, which double the number of features."""

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.ln = layer_norm(4 * width, eps, rngs, dtype)
        common = dict(init=TIMM_LINEAR, dtype=dtype, rngs=rngs)
        self.reduction = linear(4 * width, 2 * width, use_bias=False, **common)

    def __call__(self, x: Image) -> Result:
        """Returns the image with half as many rows and columns."""
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, width)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # by columns, then by rows
        return self.reduction(self.ln(x.reshape(batch, rows // 2, columns // 2, 4 * width)))


class Swin(ProjectedModule):
    """A Swin Transformer: patches, stages of blocks, a LayerNorm, and the mean over all places.

    Pairs of blocks of a stage are stacked on a leading axis, and scanned.
    """

    def __init__(
        self,
        config: SwinConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # always GELU
        self.config, self.remat = config, check_remat(remat)
        self.dtype = activation_dtype(dtype)
        width, common = config.width, dict(dtype=dtype, rngs=rngs)
        self.patch_embedding = linear(
            config.patch_size**2 * 3,
            width,
            init=TORCH,
            axes=("pixels", "patch_features"),
            **common,
        )
        self.ln_pre = layer_norm(width, config.eps, rngs, dtype)
        for i, stage in enumerate(config.stages()):
            if i:
                setattr(self, f"merge{i + 1}", Merge(stage.width // 2, config.eps, **common))
            make = partial(SwinPair, stage, dtype=dtype)
            setattr(self, f"stage{i + 1}", stack(make, stage.layers // 2, rngs))
        self.ln_post = layer_norm(config.features, config.eps, rngs, dtype)
        self.projection = projection(
            config, config.features, embed_dim, classifier=TIMM_LINEAR, **common
        )

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the mean over all places, after the last LayerNorm and before the projection."""
        del key
        return self._places(image).mean((1, 2))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and those of each place before their mean is taken."""
        del key
        x = self._places(image)
        places = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
        return self.project(x.mean((1, 2))), places.astype(self.dtype)

    def _places(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns features"]:
        side = self.config.stages()[0].side
        x = patches(normalized(image, self.config), self.config.patch_size)
        x = sharding.constrain_rows(self.patch_embedding(x))
        x = self.ln_pre(x).astype(self.dtype).reshape(x.shape[0], side, side, x.shape[-1])
        for i in range(len(self.config.layers)):
            if i:
                x = getattr(self, f"merge{i + 1}")(x)
            x = scan(getattr(self, f"stage{i + 1}"), x, lambda pair, x: pair(x), self.remat)
        return self.ln_post(x)
