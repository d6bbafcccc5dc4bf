"""CLIP's ResNet (section 2.4): anti-aliased strides, a stem of three layers, attention pooling.

Strides are average pools before a convolution (Zhang 2019), the stem is ResNet-D's (He et al.
2018).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed.param_spec import POSITIONS, defer_gathering
from clip_jax.models.convolution import BatchNorm, Convolution, Image, Result, average_pool
from clip_jax.models.initializers import TORCH, TORCH_KERNEL, resnet_pool_init
from clip_jax.models.layers import activation_dtype, linear
from clip_jax.models.model_config import ResNetConfig
from clip_jax.models.pixels import normalized
from clip_jax.models.stack import apply_once, check_remat, scan, stack

EXPANSION = 4


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions with a residual connection.

    The last scale is initialised with zero, so that a fresh block is its shortcut.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        config: ResNetConfig,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = stride
        outputs = EXPANSION * planes
        common = dict(dtype=dtype, rngs=rngs)
        point = dict(use_bias=False, init=TORCH, **common)
        norm = dict(eps=config.eps, momentum=config.momentum, rngs=rngs)
        self.conv1 = linear(inputs, planes, **point)
        self.bn1 = BatchNorm(planes, **norm)
        self.conv2 = Convolution(planes, planes, 3, kernel_init=TORCH_KERNEL, **common)
        self.bn2 = BatchNorm(planes, **norm)
        self.conv3 = linear(planes, outputs, **point)
        self.bn3 = BatchNorm(outputs, scale=0.0, **norm)
        self.shortcut = stride > 1 or inputs != outputs
        if self.shortcut:
            self.conv_shortcut = linear(inputs, outputs, **point)
            self.bn_shortcut = BatchNorm(outputs, **norm)

    def __call__(self, x: Image, train: bool) -> Result:
        """Applies the block to an image, which becomes `stride` times smaller.

        The result has four times `planes` channels.
        """
        y = jax.nn.relu(self.bn1(self.conv1(x), train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train))
        y = self.bn3(self.conv3(average_pool(y, self.stride)), train)
        if self.shortcut:
            x = self.bn_shortcut(self.conv_shortcut(average_pool(x, self.stride)), train)
        return jax.nn.relu(x + y)


class Stage(nnx.Module):
    """Blocks of one width: the first, which may differ in shape, and a stack of the others."""

    def __init__(
        self,
        first: nnx.Module,
        others: Callable[..., nnx.Module],
        depth: int,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        defer_gathering(first)  # `apply_once` gathers it
        self.first = first
        self.deep = depth > 1
        if self.deep:
            self.rest = stack(others, depth - 1, rngs)
        self.remat = check_remat(remat)

    def __call__(self, x: Image, train: bool) -> Result:
        """Applies all blocks."""
        x = apply_once(self.first, x, lambda block, x: block(x, train), self.remat, train)
        if self.deep:
            x = scan(self.rest, x, lambda block, x: block(x, train), self.remat, train)
        return x


class Stem(nnx.Module):
    """Three convolutions and an average pool, which reduce an image to a quarter of its size."""

    def __init__(self, config: ResNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width = config.width
        conv = dict(kernel_init=TORCH_KERNEL, dtype=dtype, rngs=rngs)
        norm = dict(eps=config.eps, momentum=config.momentum, rngs=rngs)
        self.conv1 = Convolution(3, width // 2, 3, stride=2, padding=(1, 1), **conv)
        self.bn1 = BatchNorm(width // 2, **norm)
        self.conv2 = Convolution(width // 2, width // 2, 3, **conv)
        self.bn2 = BatchNorm(width // 2, **norm)
        self.conv3 = Convolution(width // 2, width, 3, **conv)
        self.bn3 = BatchNorm(width, **norm)

    def __call__(self, x: Image, train: bool) -> Result:
        """Returns the image, four times smaller, with `width` channels."""
        x = jax.nn.relu(self.bn1(self.conv1(x), train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train))
        x = jax.nn.relu(self.bn3(self.conv3(x), train))
        return average_pool(x, 2)


class SpatialAttentionPool(nnx.Module):
    """Pools by the attention of the mean over all places to all places, with learned positions."""

    def __init__(
        self, config: ResNetConfig, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width, self.heads = 32 * config.width, config.heads
        places = (config.image_size // 32) ** 2 + 1
        init = resnet_pool_init(width)
        common = dict(init=init, dtype=dtype, rngs=rngs)
        self.positional_embedding = nnx.Param(
            init.kernel(rngs.params(), (places, width)), spec=POSITIONS
        )
        self.q = linear(width, width, **common)
        self.kv = linear(width, 2 * width, **common)
        self.projection = linear(width, embed_dim, **common)

    def __call__(self, x: Image) -> Float[Array, "batch embed_dim"]:
        """Returns one vector for each image."""
        batch, width = x.shape[0], x.shape[-1]
        x = x.reshape(batch, x.shape[1] * x.shape[2], width)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].astype(x.dtype)
        heads = (batch, x.shape[1], self.heads, width // self.heads)
        k, v = (part.reshape(heads) for part in jnp.split(self.kv(x), 2, axis=-1))
        query = self.q(x[:, :1]).reshape(batch, 1, *heads[2:])
        attended = jax.nn.dot_product_attention(query, k, v)
        return self.projection(attended.reshape(batch, width))

    def alone(self, x: Image) -> Float[Array, "batch places embed_dim"]:
        """Returns what each place gives where it alone is attended to, without its position."""
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        values = jnp.split(self.kv(x), 2, axis=-1)[1]
        return self.projection(values)


class ModifiedResNet(nnx.Module):
    """CLIP's ResNet: a stem, four stages of bottlenecks, and attention pooling."""

    def __init__(
        self,
        config: ResNetConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # always ReLU
        self.config = config
        self.dtype = activation_dtype(dtype)
        self.stem = Stem(config, dtype=dtype, rngs=rngs)
        inputs = config.width
        for i, depth in enumerate(config.layers):
            planes = config.width * 2**i
            make = partial(Bottleneck, planes=planes, config=config, dtype=dtype)
            first = make(inputs, stride=2 if i else 1, rngs=rngs)
            inputs = EXPANSION * planes
            stage = Stage(first, partial(make, inputs, stride=1), depth, remat, rngs)
            setattr(self, f"stage{i + 1}", stage)
        self.pool = SpatialAttentionPool(config, embed_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Returns features of images (uint8, or normalised already), not normalised to length one.

        With a `key` batch statistics are used, and the running statistics are updated.
        """
        return self.pool(self._places(image, key))

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places channels"]]:
        """Returns the features of a call, and the output of the last stage for each place."""
        x = self._places(image, key)
        return self.pool(x), x.reshape(x.shape[0], -1, x.shape[-1])

    def patches(
        self, image: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch places embed_dim"]:
        """Returns what the pooling makes of each place alone (Zhou et al. 2022, MaskCLIP)."""
        return self.pool.alone(self._places(image, None))

    def _places(
        self, image: Num[Array, "batch height width 3"], key: Key[Array, " batch"] | None
    ) -> Float[Array, "batch rows columns channels"]:
        train = key is not None
        x = self.stem(normalized(image, self.config).astype(self.dtype), train)
        for i in range(len(self.config.layers)):
            x = getattr(self, f"stage{i + 1}")(x, train)
        return x
