"""Structural reparameterisation: the branches of a trained FastViT as single convolutions.

A convolution, a batch normalization with running statistics and the identity are linear, and so is
their sum (Ding et al. 2021; Vasu et al. 2023, section 3). One convolution computes the same with
fewer parameters and fewer passes over memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.convolution import BatchNorm
from clip_jax.models.fastvit import Branches, Mixer, Positions
from clip_jax.models.fastvit_configs import FastViTConfig
from clip_jax.models.tower import Params

# In a stack of layers each has a leading axis of layers.
Kernel = Float[Array, "*shape outputs"]
Bias = Float[Array, "*layers outputs"]


def reparameterised(model: CLIP) -> CLIP:
    """Returns a model for inference that computes the same with single convolutions.

    Its image tower uses the running statistics of batch normalization for ever; train the model
    that is given, and not the one that is returned.

    Args:
      model: a model with a FastViT, whose branches are not single convolutions yet.

    Raises:
      UserError: the model has no such image tower.
    """
    vision = model.config.vision
    if not isinstance(vision, FastViTConfig) or vision.single:
        raise UserError(
            f"the image tower is a {vision.summary()}, and has no branches that single "
            "convolutions could replace: only a fastvit with vision.single=False has"
        )
    dtype = str(jnp.dtype(model.dtype))
    single = abstract_model(model.config.with_vision(single=True), dtype)
    graph, state = nnx.split(single)
    values = nnx.to_pure_dict(nnx.state(model))
    values["vision"] = jax.jit(_single)(model.vision)
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state)


def _single(module: nnx.Module) -> Params:
    """Returns the variables of a module with single convolutions, as nested dictionaries."""
    match module:
        case Branches():
            return _convolution(*_sum(module))
        case Mixer():
            return _convolution(*_mixing(module))
        case Positions():
            kernel = module.conv.kernel[...]
            return _convolution(kernel + _identity(kernel), module.conv.bias[...])
    values = nnx.to_pure_dict(nnx.state(module))
    for name, child in nnx.iter_children(module):
        if isinstance(child, nnx.Module):
            values[name] = _single(child)
    return values


def _convolution(kernel: Kernel, bias: Bias) -> Params:
    return {"conv": {"kernel": kernel, "bias": bias}}


def _sum(branches: Branches) -> tuple[Kernel, Bias]:
    """Returns the kernel and the bias of the sum of all branches."""
    (kernel, bias), *others = (
        _normalised(getattr(branches, f"conv{size}").kernel[...], getattr(branches, f"bn{size}"))
        for size in branches.sizes  # the largest first
    )
    for scaled, shift in others:
        kernel, bias = kernel + _padded(scaled, kernel), bias + shift
    if branches.identity:
        scaled, shift = _normalised(_identity(kernel), branches.bn_identity)
        kernel, bias = kernel + scaled, bias + shift
    return kernel, bias


def _mixing(mixer: Mixer) -> tuple[Kernel, Bias]:
    """Returns the kernel and the bias of x + gain · (mixed − normalised)."""
    kernel, bias = _sum(mixer.mixer)
    subtracted, shift = _normalised(_identity(kernel), mixer.bn)
    gain = mixer.scale[...]
    return _identity(kernel) + _times(kernel - subtracted, gain), gain * (bias - shift)


def _normalised(kernel: Kernel, norm: BatchNorm) -> tuple[Kernel, Bias]:
    """Returns the kernel and the bias of a convolution followed by a batch normalization."""
    factor = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.eps)
    return _times(kernel, factor), norm.bias[...] - norm.mean[...] * factor


def _times(kernel: Kernel, factor: Bias) -> Kernel:
    """Multiplies the outputs of a kernel; both may have a leading axis of layers."""
    return kernel * jnp.expand_dims(factor, tuple(range(factor.ndim - 1, kernel.ndim - 1)))


def _padded(
    kernel: Float[Array, "*small outputs"], like: Float[Array, "*large outputs"]
) -> Float[Array, "*large outputs"]:
    """Returns a kernel with zeros around it, so that its window is as large as another's."""
    margins = [(b - a) // 2 for a, b in zip(kernel.shape[:-2], like.shape[:-2], strict=True)]
    return jnp.pad(kernel, [*((margin, margin) for margin in margins), (0, 0), (0, 0)])


def _identity(like: Kernel) -> Kernel:
    """Returns the kernel that changes nothing: a matrix, or of a depthwise convolution."""
    if like.ndim == 2:
        return jnp.eye(len(like), dtype=like.dtype)
    size = like.shape[-3]
    centre: Any = jnp.zeros_like(like)
    return centre.at[..., size // 2, size // 2, :, :].set(1)
