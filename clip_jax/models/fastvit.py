"""FastViT (Vasu et al. 2023), the image tower of MobileCLIP (Vasu et al. 2024).

Its convolutions are sums of branches in training: windows of several sizes and the identity, each
with a batch normalization. Such a sum is linear, and `reparameterisation` makes one convolution of
it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed.param_spec import VECTOR
from clip_jax.models.convolution import BatchNorm, Convolution, Image, Result
from clip_jax.models.efficientnet import SqueezeExcite
from clip_jax.models.fastvit_configs import (
    LARGE,
    MIXER_WINDOW,
    MLP_WINDOW,
    POSITIONS,
    SMALL,
    FastViTConfig,
    Stage,
    last_squeezed,
    squeezed,
)
from clip_jax.models.initializers import TIMM_BLOCK, TIMM_LINEAR, TORCH, LinearInit
from clip_jax.models.layers import Linear, activation_dtype, layer_norm, linear
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.tower import hidden_width
from clip_jax.models.transformer import Attention

_GAIN = 1e-5  # with which each block's branches start
_gelu = partial(jax.nn.gelu, approximate=False)


def _convolution(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    init: LinearInit = TORCH,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Linear | Convolution:
    """Makes a convolution; of single places it is a matrix."""
    common = dict(dtype=dtype, rngs=rngs)
    if (size, stride, depthwise) == (1, 1, False):
        return linear(inputs, outputs, use_bias=bias, init=init, **common)
    fan_in = size**2 * (1 if depthwise else inputs)
    return Convolution(
        inputs,
        outputs,
        size,
        stride=stride,
        groups=inputs if depthwise else 1,
        kernel_init=init.kernel,
        bias_init=init.bias(fan_in) if bias else None,
        **common,
    )


class Branches(nnx.Module):
    """A sum of convolutions and of the identity, each followed by a batch normalization.

    MobileOne's (Vasu et al. 2022) and RepLKNet's (Ding et al. 2022). A `single` one is one
    convolution with a bias.

    Args:
      inputs, outputs: the number of channels; outputs of a depthwise one are a multiple of inputs.
      sizes: the sides of the windows, the largest first.
      config: the tower.
      stride: the distance of neighbouring windows.
      depthwise: whether each output sees one channel.
      identity: whether the identity is added, where it has the shape of the result.
      init: the initializer of the kernels.
      dtype: the dtype that the model computes in.
      rngs: the source of the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *sizes: int,
        config: FastViTConfig,
        stride: int = 1,
        depthwise: bool = True,
        identity: bool = True,
        init: LinearInit = TORCH,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.sizes, self.is_single = sizes, config.single
        self.identity = identity and inputs == outputs and stride == 1
        make = partial(_convolution, inputs, outputs, stride=stride, depthwise=depthwise)
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        if config.single:
            self.conv = make(sizes[0], bias=True, init=init, **common)
            return
        norm = dict(eps=config.eps, momentum=config.momentum, rngs=rngs)
        for size in sizes:
            setattr(self, f"conv{size}", make(size, init=init, **common))
            setattr(self, f"bn{size}", BatchNorm(outputs, **norm))
        if self.identity:
            self.bn_identity = BatchNorm(inputs, **norm)

    def __call__(self, x: Image, train: bool) -> Result:
        """Returns the sum, an image that is `stride` times smaller."""
        if self.is_single:
            return self.conv(x)
        results = [
            getattr(self, f"bn{size}")(getattr(self, f"conv{size}")(x), train)
            for size in self.sizes
        ]
        return sum(results[1:], results[0]) + (self.bn_identity(x, train) if self.identity else 0)


class Downsample(nnx.Module):
    """Halves the sides of an image and doubles its channels."""

    def __init__(
        self, stage: Stage, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, self.squeezes = stage.width, stage.squeezes
        common = dict(config=config, dtype=dtype, rngs=rngs)
        self.large = Branches(width // 2, width, LARGE, SMALL, stride=2, **common)
        if self.squeezes:
            self.squeeze_excite = _squeeze_excite(width, squeezed(width), dtype, rngs)
        self.point = Branches(width, width, 1, depthwise=False, **common)

    def __call__(self, x: Image, train: bool) -> Result:
        """Returns the smaller image."""
        x = self.large(x, train)
        x = _gelu(self.squeeze_excite(x) if self.squeezes else x)
        return _gelu(self.point(x, train))


def _squeeze_excite(width: int, inner: int, dtype: DTypeLike, rngs: nnx.Rngs) -> SqueezeExcite:
    return SqueezeExcite(width, inner, activation="relu", init=TORCH, dtype=dtype, rngs=rngs)


class Positions(nnx.Module):
    """Conditional positions: a depthwise convolution that is added (Chu et al. 2021)."""

    def __init__(
        self, width: int, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.is_single = config.single
        self.conv = _convolution(
            width, width, POSITIONS, depthwise=True, bias=True, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Image) -> Image:
        """Returns the image with its positions."""
        return self.conv(x) if self.is_single else x + self.conv(x)


class Mixer(nnx.Module):
    """RepMixer, which mixes neighbouring places in place of attention (section 3.1)."""

    def __init__(
        self, width: int, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        common = dict(config=config, dtype=dtype, rngs=rngs)
        self.is_single = config.single
        if config.single:
            self.conv = _convolution(
                width, width, MIXER_WINDOW, depthwise=True, bias=True, dtype=dtype, rngs=rngs
            )
            return
        self.mixer = Branches(width, width, MIXER_WINDOW, 1, **common)
        self.bn = BatchNorm(width, eps=config.eps, momentum=config.momentum, rngs=rngs)
        self.scale = _gain(width)

    def __call__(self, x: Image, train: bool) -> Image:
        """Returns the image with its places mixed."""
        if self.is_single:
            return self.conv(x)
        mixed = self.mixer(x, train) - self.bn(x, train)
        return x + mixed * self.scale[...].astype(x.dtype)


def _gain(width: int) -> nnx.Param[Array]:
    return nnx.Param(jnp.full(width, _GAIN), spec=VECTOR)


class ConvMLP(nnx.Module):
    """A depthwise convolution, and an MLP at each place."""

    def __init__(
        self, stage: Stage, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, hidden, common = stage.width, hidden_width(stage), dict(dtype=dtype, rngs=rngs)
        self.depthwise = Branches(
            width, width, MLP_WINDOW, config=config, identity=False, init=TIMM_LINEAR, **common
        )
        axes = ("width", "hidden")
        self.fc = linear(width, hidden, init=TIMM_LINEAR, axes=axes, bias_axis="hidden", **common)
        self.proj = linear(hidden, width, init=TIMM_LINEAR, axes=axes[::-1], **common)

    def __call__(self, x: Image, train: bool) -> Image:
        """Returns what the block adds to an image."""
        return self.proj(_gelu(self.fc(self.depthwise(x, train))))


class MixerBlock(nnx.Module):
    """RepMixer, and a residual MLP."""

    def __init__(
        self, stage: Stage, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.mixer = Mixer(stage.width, config, dtype=dtype, rngs=rngs)
        self.mlp = ConvMLP(stage, config, dtype=dtype, rngs=rngs)
        self.scale = _gain(stage.width)

    def __call__(self, x: Image, train: bool) -> Image:
        """Applies the block to an image."""
        x = self.mixer(x, train)
        return x + self.mlp(x, train) * self.scale[...].astype(x.dtype)


class AttentionBlock(nnx.Module):
    """A residual attention of all places to all places, and a residual MLP."""

    def __init__(
        self, stage: Stage, config: FastViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, self.layer_norm = stage.width, config.layer_norm
        if self.layer_norm:
            self.ln = layer_norm(width, config.eps, rngs, dtype)
        else:
            self.bn = BatchNorm(width, eps=config.eps, momentum=config.momentum, rngs=rngs)
        self.attention = Attention(stage, init=TIMM_BLOCK, bias=False, dtype=dtype, rngs=rngs)
        self.scale_1, self.scale_2 = _gain(width), _gain(width)
        self.mlp = ConvMLP(stage, config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Image, train: bool) -> Image:
        """Applies the block to an image."""
        y = self.ln(x) if self.layer_norm else self.bn(x, train)
        places = y.astype(x.dtype).reshape(x.shape[0], -1, x.shape[-1])
        y = self.attention(places, causal=False).reshape(x.shape)
        x = x + y * self.scale_1[...].astype(x.dtype)
        return x + self.mlp(x, train) * self.scale_2[...].astype(x.dtype)


class FastViT(ProjectedModule):
    """A FastViT: a stem, stages of blocks, a last depthwise convolution and the mean over places.

    The blocks of a stage are stacked on a leading axis, and scanned.
    """

    def __init__(
        self,
        config: FastViTConfig,
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
        branches: Callable[..., Branches] = partial(Branches, config=config, **common)
        scale = (1,) if config.stem_scale else ()
        self.stem1 = branches(3, width, 3, *scale, stride=2, depthwise=False)
        self.stem2 = branches(width, width, 3, *scale, stride=2)
        self.stem3 = branches(width, width, 1, depthwise=False)
        for stage in config.stages():
            number = stage.number
            if number > 1:
                setattr(self, f"downsample{number}", Downsample(stage, config, **common))
            if stage.attends:
                setattr(self, f"positions{number}", Positions(stage.width, config, **common))
            block = AttentionBlock if stage.attends else MixerBlock
            make = partial(block, stage, config, dtype=dtype)
            setattr(self, f"stage{number}", stack(make, stage.layers, rngs))
        features = config.features
        self.last = branches(features // 2, features, 3, 1)
        self.squeeze_excite = _squeeze_excite(features, last_squeezed(features), dtype, rngs)
        self.projection = projection(config, features, embed_dim, classifier=TIMM_LINEAR, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the mean over all places, before the projection; arguments as for a call."""
        return self._places(image, key is not None).mean((1, 2))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and those of each place before their mean is taken."""
        x = self._places(image, key is not None)
        return self.project(x.mean((1, 2))), x.reshape(x.shape[0], -1, x.shape[-1])

    def _places(
        self, image: Num[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        x = normalized(image, self.config).astype(self.dtype)
        for stem in (self.stem1, self.stem2, self.stem3):
            x = _gelu(stem(x, train))
        for stage in self.config.stages():
            number = stage.number
            if number > 1:
                x = getattr(self, f"downsample{number}")(x, train)
            if stage.attends:
                x = getattr(self, f"positions{number}")(x)
            blocks = getattr(self, f"stage{number}")
            x = scan(blocks, x, lambda block, x: block(x, train), self.remat, train)
        return _gelu(self.squeeze_excite(self.last(x, train)))
