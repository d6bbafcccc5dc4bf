"""What a fresh model's parameters are drawn from: for each family, what its own code draws from.

docs/training.md compares every parameter here, in OpenAI's CLIP, in open_clip and in big_vision.
A tower's family is chosen in one place: `vision_init` and `text_init`. What is not named here
starts as everywhere: LayerNorms and BatchNorms with scales of 1 (the last of a ResNet's block with
0) and biases of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from clip_jax.models.model_config import TextConfig, VisionConfig

Initializer = jax.nn.initializers.Initializer

normal = nnx.initializers.normal
_zeros = nnx.initializers.zeros_init()

# Variance 1 / fan-in, cut off at two standard deviations: Flax's default for Dense and Conv.
LECUN_NORMAL: Initializer = nnx.initializers.lecun_normal()
# Variance 2 / (fan-in + fan-out), uniform.
XAVIER_UNIFORM: Initializer = nnx.initializers.xavier_uniform()
# The same for each of several square matrices that lie side by side, such as [width, 3 · width].
SQUARE_XAVIER_UNIFORM: Initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
# torch's default for weights of nn.Linear and nn.Conv2d: uniform within ±fan-in^-½, whose variance
# is 1 / (3 · fan-in).
TORCH_KERNEL: Initializer = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def zero_bias(fan_in: int) -> Initializer:
    """Zeros: Flax's default, and what torch's nn.MultiheadAttention sets its biases to."""
    del fan_in
    return _zeros


def torch_bias(fan_in: int) -> Initializer:
    """torch's default for biases of nn.Linear and nn.Conv2d: uniform within ±fan-in^-½."""
    bound = fan_in**-0.5
    from_zero = nnx.initializers.uniform(2 * bound)

    def draw(*args: Any, **options: Any) -> jax.Array:
        return from_zero(*args, **options) - bound

    return draw


def tiny_bias(fan_in: int) -> Initializer:
    """Normal with a spread of 10^-6: those of big_vision's MLPs."""
    del fan_in
    return normal(1e-6)


def fan_out_normal(groups: int = 1) -> Initializer:
    """Normal with variance 2 / fan-out, of one group: EfficientNet's convolutions (TensorFlow).

    A depthwise convolution has as many groups as channels; its fan-out is that of one window.
    """
    return nnx.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class LinearInit:
    """How a linear layer starts.

    kernel: of [inputs, outputs].
    bias: the initializer of [outputs], given the number of inputs.
    """

    kernel: Initializer
    bias: Callable[[int], Initializer] = zero_bias


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """How the linear layers of a Transformer's block start.

    qkv: the projection to queries, keys and values, [width, 3 · width].
    out: the projection of what attention gathered.
    fc, proj: the first and second layer of the MLP.
    """

    qkv: LinearInit
    out: LinearInit
    fc: LinearInit
    proj: LinearInit


@dataclasses.dataclass(frozen=True)
class VisionInit:
    """How a vision Transformer starts.

    patches: the projection of the patches, and the convolutions of a stem.
    embeddings: positions, class token and registers.
    block: every block, and the attention pool.
    projection: the kernel to the embedding space.
    """

    patches: LinearInit
    embeddings: Initializer
    block: BlockInit
    projection: LinearInit


@dataclasses.dataclass(frozen=True)
class TextInit:
    """How a text Transformer starts: its two tables, every block, the last projection."""

    tokens: Initializer
    positions: Initializer
    block: BlockInit
    projection: LinearInit


TORCH = LinearInit(TORCH_KERNEL, torch_bias)

# OpenAI's image tower sets no initial values for its blocks, so they are torch's: of
# nn.MultiheadAttention (Xavier over the joint in-projection, biases of zero) and nn.Linear.
CLIP_VISION_BLOCK = BlockInit(
    qkv=LinearInit(XAVIER_UNIFORM), out=LinearInit(TORCH_KERNEL), fc=TORCH, proj=TORCH
)

# big_vision's vit.py: Xavier for each matrix, biases of its MLPs next to zero.
SIGLIP_BLOCK = BlockInit(
    qkv=LinearInit(SQUARE_XAVIER_UNIFORM),
    out=LinearInit(SQUARE_XAVIER_UNIFORM),
    fc=LinearInit(XAVIER_UNIFORM, tiny_bias),
    proj=LinearInit(XAVIER_UNIFORM, tiny_bias),
)

# BERT's initializer_range for all matrices and tables, as transformers draws it (Google's
# TensorFlow code cuts the normal off at two standard deviations).
BERT_NORMAL = normal(0.02)
BERT_LINEAR = LinearInit(BERT_NORMAL)
BERT_BLOCK = BlockInit(BERT_LINEAR, BERT_LINEAR, BERT_LINEAR, BERT_LINEAR)


def clip_text_block(width: int, layers: int) -> BlockInit:
    """OpenAI's text tower: inputs by their width, outputs scaled down by the depth of the stack.

    So the residual stream keeps its variance. OpenAI's code sets weights only: biases stay torch's.
    """
    out = normal((2 * width * layers) ** -0.5)
    return BlockInit(
        qkv=LinearInit(normal(width**-0.5)),
        out=LinearInit(out),
        fc=LinearInit(normal((2 * width) ** -0.5), torch_bias),
        proj=LinearInit(out, torch_bias),
    )


def _clip_vision(config: VisionConfig) -> VisionInit:
    """OpenAI's image tower: torch's defaults, and three parameters normal by their width."""
    scale = normal(config.width**-0.5)
    return VisionInit(TORCH, scale, CLIP_VISION_BLOCK, LinearInit(scale))


def _siglip_vision(config: VisionConfig) -> VisionInit:
    """big_vision's vit.py: Flax's defaults outside of the blocks, positions by their width."""
    flax = LinearInit(LECUN_NORMAL)
    return VisionInit(flax, normal(config.width**-0.5), SIGLIP_BLOCK, flax)


# The family of a vision tower by what it reads out. No family pools by a mean (nor has a stem, nor
# registers): such a tower is CLIP's in the rest.
_VISION: dict[str, Callable[[VisionConfig], VisionInit]] = {
    "class": _clip_vision,
    "mean": _clip_vision,
    "map": _siglip_vision,
}


def vision_init(config: VisionConfig) -> VisionInit:
    """How a vision Transformer of this architecture starts."""
    return _VISION[config.pool](config)


def text_init(config: TextConfig) -> TextInit:
    """How a text Transformer of this architecture starts: SigLIP's where it reads the last place.

    SigLIP's is big_vision's text_transformer.py; others are OpenAI's, a bag of words among them.
    """
    by_width = normal(config.width**-0.5)
    if config.pool == "last":
        return TextInit(by_width, by_width, SIGLIP_BLOCK, LinearInit(LECUN_NORMAL))
    block = clip_text_block(config.width, max(config.layers, 1))  # a bag of words has none
    return TextInit(normal(0.02), normal(0.01), block, LinearInit(by_width))


def resnet_pool_init(width: int) -> LinearInit:
    """The linear layers of the attention that pools CLIP's ResNet; its positions are `normal` too.

    OpenAI's code sets weights only: biases stay torch's.
    """
    return LinearInit(normal(width**-0.5), torch_bias)
