"""ConvNeXt (Liu et al. 2022, figure 4), as in timm."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed.param_spec import VECTOR
from clip_jax.models.convnext_configs import EXPANSION, PATCH, WINDOW, ConvNeXtConfig
from clip_jax.models.convolution import Convolution, Image, Result
from clip_jax.models.initializers import TIMM_LINEAR
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.stack import check_remat, scan, stack

_CONVOLUTION = dict(kernel_init=TIMM_LINEAR.kernel, bias_init=nnx.initializers.zeros_init())
_LAYER_SCALE = 1e-6  # a fresh block is close to its shortcut


class ConvNeXtBlock(nnx.Module):
    """A depthwise convolution, a LayerNorm and an MLP in each place, with a residual connection.

    Learned gains scale what the block adds (Touvron et al. 2021).
    """

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        common = dict(dtype=dtype, rngs=rngs)
        self.depthwise = Convolution(width, width, WINDOW, groups=width, **_CONVOLUTION, **common)
        self.ln = layer_norm(width, eps, rngs, dtype)
        hidden = EXPANSION * width
        axes = ("width", "hidden")
        self.fc = linear(width, hidden, init=TIMM_LINEAR, axes=axes, bias_axis="hidden", **common)
        self.proj = linear(hidden, width, init=TIMM_LINEAR, axes=axes[::-1], **common)
        self.scale = nnx.Param(jnp.full(width, _LAYER_SCALE), spec=VECTOR)

    def __call__(self, x: Image) -> Image:
        """Applies the block to an image."""
        y = self.fc(self.ln(self.depthwise(x)))
        y = self.proj(jax.nn.gelu(y, approximate=False))
        return x + y * self.scale[...].astype(y.dtype)


class Downsample(nnx.Module):
    """A LayerNorm and a convolution, which halve an image's sides and double its channels."""

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.ln = layer_norm(width, eps, rngs, dtype)
        self.convolution = Convolution(
            width, 2 * width, 2, stride=2, padding=(0, 0), dtype=dtype, rngs=rngs, **_CONVOLUTION
        )

    def __call__(self, x: Image) -> Result:
        """Returns the smaller image. A row or column that is left over is dropped."""
        return self.convolution(self.ln(x))


class ConvNeXt(ProjectedModule):
    """A ConvNeXt: patches of 4 × 4 pixels, four stages of blocks, a mean, and a LayerNorm.

    The blocks of a stage are stacked on a leading axis, and scanned.
    """

    def __init__(
        self,
        config: ConvNeXtConfig,
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
        self.stem = Convolution(
            3, width, PATCH, stride=PATCH, padding=(0, 0), **_CONVOLUTION, **common
        )
        self.ln_stem = layer_norm(width, config.eps, rngs, dtype)
        for i, depth in enumerate(config.layers):
            if i:
                setattr(self, f"downsample{i + 1}", Downsample(width, config.eps, **common))
                width *= 2
            make = partial(ConvNeXtBlock, width, config.eps, dtype=dtype)
            setattr(self, f"stage{i + 1}", stack(make, depth, rngs))
        self.ln_post = layer_norm(width, config.eps, rngs, dtype)
        self.projection = projection(config, width, embed_dim, classifier=TIMM_LINEAR, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the mean over all places after its LayerNorm, before the projection."""
        del key
        return self.ln_post(self._places(image).mean((1, 2)))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the output of the last stage for each place.

        The latter goes through the last LayerNorm, too.
        """
        del key
        x = self._places(image)
        places = self.ln_post(x).astype(self.dtype)
        places = places.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
        return self.project(self.ln_post(x.mean((1, 2)))), places

    def _places(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns features"]:
        x = self.ln_stem(self.stem(normalized(image, self.config))).astype(self.dtype)
        for i in range(len(self.config.layers)):
            if i:
                x = getattr(self, f"downsample{i + 1}")(x)
            x = scan(getattr(self, f"stage{i + 1}"), x, lambda block, x: block(x), self.remat)
        return x
