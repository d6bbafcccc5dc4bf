"""Convolutions over channels-last images, and batch normalisation with running statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import VECTOR, ParamSpec
from clip_jax.models.layers import RESULT, activation_dtype

Image = Float[Array, "batch height width channels"]
Result = Float[Array, "batch rows columns outputs"]
Padding = tuple[int, int]


class Convolution(nnx.Module):
    """A convolution with square windows.

    Args:
      inputs, outputs: the number of channels.
      size: the side of a window in pixels.
      stride: the distance of neighbouring windows in pixels.
      padding: rows and columns of zeros before and after.
      groups: 1, or `inputs` for a depthwise convolution, whose outputs are a multiple of them.
      kernel_init: the initializer of the kernel.
      bias_init: the initializer of the bias; None: it has none.
      dtype: the dtype that the model computes in, see `activation_dtype`.
      rngs: the source of the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, self.groups = stride, groups
        self.padding = ((size - 1) // 2, size // 2) if padding is None else padding
        self.dtype = activation_dtype(dtype)
        shape = (size, size, inputs // groups, outputs)
        channels = ("inputs", "outputs") if groups == 1 else (None, None)
        spec = ParamSpec((None, None, *channels), decay=True)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape), spec=spec)
        self.biased = bias_init is not None
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), (outputs,)), spec=VECTOR)

    def __call__(self, x: Image) -> Result:
        """Convolves an image, which becomes `stride` times smaller."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        convolve = _convolve if self.groups == 1 else _depthwise
        if self.groups > 1 and kernel.shape[-1] > self.groups:  # XLA cannot shard the other form
            x = jnp.repeat(x, kernel.shape[-1] // self.groups, axis=-1)
        y = checkpoint_name(convolve(x, kernel, self.stride, self.padding), RESULT)
        return y + self.bias[...].astype(y.dtype) if self.biased else y


def _convolve(x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Computes a depthwise convolution.

    Over a mesh whose axes do not all shard the batch, XLA's gradient of the kernel is wrong (jax
    0.10.2, CPU). Here each device computes it from its own rows.

    Without a gradient, a CPU takes a sum of shifted images, which XLA computes several times as
    fast as its convolution.
    """
    convolve = partial(_convolve, stride=stride, padding=padding, groups=x.shape[-1])
    on_cpu = partial(_add_shifted, stride=stride, padding=padding)
    y: Array = jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolve)
    return y


def _add_shifted(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Computes a depthwise convolution, a shift of the image for each place of the window."""
    size = len(kernel)
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), padding, padding, (0, 0)))
    padded = jax.lax.optimization_barrier(padded)  # every shift would compute it again
    rows, columns = ((n - size) // stride * stride + 1 for n in padded.shape[1:3])
    y = jnp.zeros((), jnp.float32)
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + rows : stride, j : j + columns : stride]
            y = y + shifted * kernel[i, j, 0].astype(jnp.float32)
    return y.astype(x.dtype)


def _forward(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, padding, x.shape[-1]), (x, kernel)


def _backward(
    stride: int, padding: Padding, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved

    def convolve(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, stride, padding, x.shape[-1])

    def own(kernel: Array, rows: tuple[Array, Array]) -> tuple[Array, tuple[()]]:
        x, gradient = rows
        (by_kernel,) = jax.vjp(partial(convolve, x), kernel)[1](gradient)
        return by_kernel.astype(jnp.float32), ()

    by_kernel, _ = sharding.by_device(own, kernel, (x, gradient))
    (by_x,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](gradient)
    return by_x, by_kernel.astype(kernel.dtype)


_depthwise.defvjp(_forward, _backward)


class BatchNorm(nnx.Module):
    """Normalises the mean and variance of each channel (Ioffe and Szegedy 2015), in fp32.

    Training uses the statistics of the global batch and updates the running ones: they move towards
    the new ones by the share `momentum`, the variance as an unbiased estimate. Otherwise the
    running statistics are used. `batches` counts the updates, as other libraries' files do.
    A `frozen` layer uses the running statistics in training too.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float,
        momentum: float,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        del rngs
        self.eps, self.momentum, self.frozen = eps, momentum, False
        self.scale = nnx.Param(jnp.full(channels, scale), spec=VECTOR)
        self.bias = nnx.Param(jnp.zeros(channels), spec=VECTOR)
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Image, train: bool) -> Image:
        """Returns the image with its channels normalised, scaled and shifted."""
        y = x.astype(jnp.float32)
        if train and not self.frozen:
            mean = y.mean((0, 1, 2))
            if x.dtype == jnp.bfloat16:  # E[x²] - E[x]² is exact enough, and takes one pass
                var = jnp.maximum(jnp.square(y).mean((0, 1, 2)) - mean**2, 0)
            else:
                var = y.var((0, 1, 2))
            count = y.size // y.shape[-1]
            self._update(self.mean, mean)
            self._update(self.var, var * (count / max(count - 1, 1)))
            self.batches[...] = self.batches[...] + 1
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return ((y - mean) * factor + self.bias[...]).astype(x.dtype)

    def _update(self, running: nnx.BatchStat, new: Float[Array, " channels"]) -> None:
        old = running[...]
        running[...] = old + self.momentum * (jax.lax.stop_gradient(new) - old)


def average_pool(x: Image, size: int) -> Result:
    """Returns the means of squares of `size` × `size` pixels.

    Pixels that fill no square are dropped.
    """
    if size == 1:
        return x
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x[:, : rows * size, : columns * size]
    return x.reshape(x.shape[0], rows, size, columns, size, x.shape[-1]).mean((2, 4))


def centred_pool(x: Image) -> Result:
    """Returns the means of 3 × 3 pixels around every other pixel.

    Pixels outside the image do not count.
    """
    window: dict[str, Any] = dict(strides=(2, 2), padding=((1, 1), (1, 1)))
    y = nnx.avg_pool(x.astype(jnp.float32), (3, 3), count_include_pad=False, **window)
    return y.astype(x.dtype)
