"""ViTamin (Chen et al. 2024, section 4): MbConv blocks with LayerNorms, then a Transformer."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS
from clip_jax.models.convolution import Convolution, Image, Result, centred_pool
from clip_jax.models.gated_mlp import GeGLU
from clip_jax.models.initializers import (
    TIMM_BLOCK,
    TIMM_LINEAR,
    TIMM_TABLE,
    TORCH,
    LinearInit,
    fan_out_normal,
)
from clip_jax.models.layers import activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.resnet import Stage
from clip_jax.models.transformer import ACTIVATIONS, Transformer
from clip_jax.models.vitamin_configs import EXPANSION, ViTaminConfig

_ACTIVATION = "gelu"
_gelu = ACTIVATIONS[_ACTIVATION]


def _convolution(
    inputs: int, outputs: int, groups: int = 1, stride: int = 1, **options: Any
) -> Convolution:
    """Makes a 3×3 convolution with zeros on all sides."""
    init = dict(kernel_init=fan_out_normal(groups), bias_init=nnx.initializers.zeros_init())
    padding = (1, 1)
    return Convolution(
        inputs, outputs, 3, stride=stride, padding=padding, groups=groups, **init, **options
    )


class MBConvLN(nnx.Module):
    """An inverted bottleneck with a LayerNorm before it and a residual connection.

    Its parts are expansion, depthwise convolution and projection. With a stride of 2 the residual
    connection is a mean of 3×3 places, and a projection where the number of channels changes.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        eps: float,
        *,
        stride: int = 1,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, hidden = stride, EXPANSION * outputs
        common = dict(dtype=dtype, rngs=rngs)
        init = LinearInit(fan_out_normal())
        self.ln = layer_norm(inputs, eps, rngs, dtype)
        self.expand = linear(inputs, hidden, init=init, **common)
        self.depthwise = _convolution(hidden, hidden, hidden, stride, **common)
        self.project = linear(hidden, outputs, init=init, **common)
        self.widens = inputs != outputs
        if self.widens:
            self.shortcut = linear(inputs, outputs, init=init, **common)

    def __call__(self, x: Image, train: bool) -> Result:
        """Applies the block to an image, which becomes `stride` times smaller."""
        del train  # there are no batch statistics
        y = _gelu(self.expand(self.ln(x)))
        y = self.project(_gelu(self.depthwise(y)))
        x = centred_pool(x) if self.stride == 2 else x
        return y + (self.shortcut(x) if self.widens else x)


class ConvolutionalStages(nnx.Module):
    """Convolutions to a sixteenth of an image's size: a stem, two stages, and one more."""

    def __init__(
        self, config: ViTaminConfig, *, dtype: DTypeLike, remat: str, rngs: nnx.Rngs
    ) -> None:
        width, eps, common = config.stem, config.eps, dict(dtype=dtype, rngs=rngs)
        self.conv1 = _convolution(3, width, stride=2, **common)
        self.ln_stem = layer_norm(width, eps, rngs, dtype)
        self.conv2 = _convolution(width, width, **common)
        inputs = width
        for i, depth in enumerate(config.stem_layers):
            outputs = width * 2**i
            make = partial(MBConvLN, outputs=outputs, eps=eps, dtype=dtype)
            first = make(inputs, stride=2, rngs=rngs)
            stage = Stage(first, partial(make, outputs), depth, remat, rngs)
            setattr(self, f"stage{i + 1}", stage)
            inputs = outputs
        self.ln = layer_norm(inputs, eps, rngs, dtype)
        self.conv3 = Convolution(
            inputs,
            config.width,
            3,
            stride=2,
            padding=(1, 1),
            kernel_init=TORCH.kernel,
            bias_init=TORCH.bias(9 * inputs),
            **common,
        )

    def __call__(self, x: Image) -> Result:
        """Returns a grid of features."""
        x = self.conv1(x)
        x = self.conv2(_gelu(self.ln_stem(x).astype(x.dtype)))
        x = self.stage2(self.stage1(x, False), False)
        return self.conv3(self.ln(x))


class ViTamin(ProjectedModule):
    """A ViTamin: convolutions to tokens, blocks with gated MLPs, a mean, and a LayerNorm."""

    def __init__(
        self,
        config: ViTaminConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # always GELU
        self.config = config
        self.dtype = activation_dtype(dtype)
        width, common = config.width, dict(dtype=dtype, rngs=rngs)
        self.stages = ConvolutionalStages(config, remat=remat, **common)
        if config.positions:
            self.positional_embedding = nnx.Param(
                TIMM_TABLE(rngs.params(), (config.tokens, width)), spec=POSITIONS
            )
        self.transformer = Transformer(
            config,
            _ACTIVATION,
            mlp=GeGLU,
            init=TIMM_BLOCK,
            causal=False,
            remat=remat,
            chunk=chunk,
            **common,
        )
        self.ln_post = layer_norm(width, config.eps, rngs)
        self.projection = projection(config, width, embed_dim, classifier=TIMM_LINEAR, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the mean over all tokens after its LayerNorm, before the projection."""
        del key
        return self.ln_post(self._tokens(image).mean(1))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the output of the blocks for each token.

        The latter goes through the last LayerNorm, too.
        """
        del key
        x = self._tokens(image)
        return self.project(self.ln_post(x.mean(1))), self.ln_post(x).astype(self.dtype)

    def after_layer(
        self, image: Num[Array, "batch height width 3"], layer: int
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of a block, counted from 1, for every token."""
        return self.transformer.first(self._embedded(image), layer)

    def _tokens(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of the blocks."""
        return self.transformer(self._embedded(image))

    def _embedded(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the input of the blocks."""
        x = self.stages(normalized(image, self.config))
        x = sharding.constrain_rows(x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))
        if self.config.positions:
            x = x + self.positional_embedding[...].astype(x.dtype)
        return x
