"""EfficientNet (Tan and Le 2019) with global pooling and no classifier: the image tower of ALIGN.

EfficientNet-Lite has no squeeze-and-excite and ReLU6 in place of SiLU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.models.convolution import BatchNorm, Convolution, Image, Result
from clip_jax.models.initializers import LECUN_NORMAL, LinearInit, fan_out_normal
from clip_jax.models.layers import activation_dtype, linear
from clip_jax.models.model_config import EfficientNetConfig
from clip_jax.models.pixels import normalized
from clip_jax.models.resnet import Stage

_LINEAR = LinearInit(fan_out_normal())
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
}


class SqueezeExcite(nnx.Module):
    """Scales channels by a function of their means over the image (Hu et al. 2017)."""

    def __init__(
        self,
        channels: int,
        inner: int,
        *,
        activation: str = "silu",
        init: LinearInit = _LINEAR,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        common = dict(init=init, dtype=dtype, rngs=rngs)
        self.reduce = linear(channels, inner, **common)
        self.expand = linear(inner, channels, **common)

    def __call__(self, x: Image) -> Image:
        """Returns the image with its channels scaled."""
        activate = ACTIVATIONS[self.activation]
        scale = jax.nn.sigmoid(self.expand(activate(self.reduce(x.mean((1, 2))))))
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
        self.activation, self.squeezes = config.activation, config.squeeze > 0
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
        if self.squeezes:
            inner = max(1, int(inputs * config.squeeze))
            self.squeeze_excite = SqueezeExcite(hidden, inner, dtype=dtype, rngs=rngs)
        self.project = linear(hidden, outputs, **point)
        self.bn_project = BatchNorm(outputs, **norm)

    def __call__(self, x: Image, train: bool) -> Result:
        """Applies the block to an image, which becomes `stride` times smaller."""
        activate, y = ACTIVATIONS[self.activation], x
        if self.expands:
            y = activate(self.bn_expand(self.expand(y), train))
        y = activate(self.bn_depthwise(self.depthwise(y), train))
        if self.squeezes:
            y = self.squeeze_excite(y)
        y = self.bn_project(self.project(y), train)
        return x + y if self.adds else y


class EfficientNet(nnx.Module):
    """An EfficientNet: a strided stem, stages of `MBConv`, and the mean over all places.

    A 1×1 convolution may come before the mean, and a projection after it.
    """

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
        del activation  # that of Transformers
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
        if config.head:
            self.head = linear(
                outputs, config.head, use_bias=False, init=_LINEAR, dtype=dtype, rngs=rngs
            )
            self.bn_head = BatchNorm(
                config.head, eps=config.eps, momentum=config.momentum, rngs=rngs
            )
        if config.projection:
            self.projection = linear(
                config.features,
                embed_dim,
                use_bias=False,
                init=LinearInit(LECUN_NORMAL),
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Returns features of images (uint8, or normalised already), not normalised to length one.

        With a `key` batch statistics are used, and the running statistics are updated.
        """
        return self.project(self.pooled(image, key=key))

    def project(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch embed_dim"]:
        """Projects pooled features to the embedding space; without a projection they stay as is."""
        return self.projection(pooled) if self.config.projection else pooled

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the mean over all places, before the projection; arguments as for a call."""
        return self._places(image, key).mean((1, 2))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and those of each place before their mean is taken."""
        x = self._places(image, key)
        return self.project(x.mean((1, 2))), x.reshape(x.shape[0], -1, x.shape[-1])

    def _places(
        self, image: Num[Array, "batch height width 3"], key: Key[Array, " batch"] | None
    ) -> Float[Array, "batch rows columns features"]:
        train, activate = key is not None, ACTIVATIONS[self.config.activation]
        x = self.stem(normalized(image, self.config).astype(self.dtype))
        x = activate(self.bn_stem(x, train))
        for i in range(len(self.config.stages)):
            x = getattr(self, f"stage{i + 1}")(x, train)
        if self.config.head:
            x = activate(self.bn_head(self.head(x), train))
        return x
