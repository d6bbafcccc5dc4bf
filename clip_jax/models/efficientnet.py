"""EfficientNet (Tan and Le 2019) with global pooling and no head: the image tower of ALIGN."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.models.convolution import BatchNorm, Convolution, Image, Result
from clip_jax.models.initializers import LinearInit, fan_out_normal
from clip_jax.models.layers import activation_dtype, linear
from clip_jax.models.model_config import EfficientNetConfig
from clip_jax.models.pixels import normalized
from clip_jax.models.resnet import Stage

_LINEAR = LinearInit(fan_out_normal())


class SqueezeExcite(nnx.Module):
    """Scales channels by a function of their means over the image (Hu et al. 2017)."""

    def __init__(self, channels: int, inner: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        common = dict(init=_LINEAR, dtype=dtype, rngs=rngs)
        self.reduce = linear(channels, inner, **common)
        self.expand = linear(inner, channels, **common)

    def __call__(self, x: Image) -> Image:
        """Returns the image with its channels scaled."""
        scale = jax.nn.sigmoid(self.expand(jax.nn.silu(self.reduce(x.mean((1, 2))))))
        return x * scale[:, None, None, :]


class MBConv(nnx.Module):
    """An inverted bottleneck with a residual connection.

    Its parts are expansion, depthwise convolution, squeeze-and-excite and projection.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: EfficientNetConfig,
        *,
        size: int,
        stride: int,
        expansion: int,
        symmetric: bool = False,
        first: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        point = dict(use_bias=False, init=_LINEAR, dtype=dtype, rngs=rngs)
        norm = dict(eps=config.eps, momentum=config.momentum, rngs=rngs)
        hidden = inputs * expansion
        self.expands, self.adds = expansion > 1, not first
        if self.expands:
            self.expand = linear(inputs, hidden, **point)
            self.bn_expand = BatchNorm(hidden, **norm)
        before = size // 2 - (stride > 1 and not symmetric)
        self.depthwise = Convolution(
            hidden,
            hidden,
            size,
            stride=stride,
            padding=(before, size // 2),
            groups=hidden,
            kernel_init=fan_out_normal(hidden),
            dtype=dtype,
            rngs=rngs,
        )
        self.bn_depthwise = BatchNorm(hidden, **norm)
        inner = max(1, int(inputs * config.squeeze))
        self.squeeze_excite = SqueezeExcite(hidden, inner, dtype=dtype, rngs=rngs)
        self.project = linear(hidden, outputs, **point)
        self.bn_project = BatchNorm(outputs, **norm)

    def __call__(self, x: Image, train: bool) -> Result:
        """Applies the block to an image, which becomes `stride` times smaller."""
        y = x
        if self.expands:
            y = jax.nn.silu(self.bn_expand(self.expand(y), train))
        y = jax.nn.silu(self.bn_depthwise(self.depthwise(y), train))
        y = self.bn_project(self.project(self.squeeze_excite(y)), train)
        return x + y if self.adds else y


class EfficientNet(nnx.Module):
    """An EfficientNet: a strided stem, stages of `MBConv`, and the mean over all places."""

    def __init__(
        self,
        config: EfficientNetConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        del embed_dim, activation  # the channels of the last stage, and SiLU
        self.config = config
        self.dtype = activation_dtype(dtype)
        stem = config.channels(config.stem)
        self.stem = Convolution(
            3, stem, 3, stride=2, padding=(0, 1), kernel_init=_LINEAR.kernel, dtype=dtype, rngs=rngs
        )
        self.bn_stem = BatchNorm(stem, eps=config.eps, momentum=config.momentum, rngs=rngs)
        block = 0
        for i, (size, stride, expansion, inputs, outputs, repeats) in enumerate(config.stages):
            inputs, outputs = config.channels(inputs), config.channels(outputs)
            make = partial(MBConv, config=config, size=size, expansion=expansion, dtype=dtype)
            first = make(
                inputs,
                outputs,
                stride=stride,
                symmetric=block in config.symmetric,
                first=True,
                rngs=rngs,
            )
            depth = config.repeats(repeats)
            others = partial(make, outputs, outputs, stride=1)
            setattr(self, f"stage{i + 1}", Stage(first, others, depth, remat, rngs))
            block += depth

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Returns features of images (uint8, or normalised already), not normalised to length one.

        With a `key` batch statistics are used, and the running statistics are updated.
        """
        train = key is not None
        x = self.stem(normalized(image, self.config).astype(self.dtype))
        x = jax.nn.silu(self.bn_stem(x, train))
        for i in range(len(self.config.stages)):
            x = getattr(self, f"stage{i + 1}")(x, train)
        return x.mean((1, 2))
