"""Initial values of parameters: for each family of models, those of its own code.

docs/training.md compares every parameter here, in OpenAI's CLIP, in open_clip and in big_vision.
`vision_init` and `text_init` choose the family of a tower. Parameters that are not named here start
as usual: LayerNorms and BatchNorms with scales of 1 (0 in the last of a ResNet's block) and biases
of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from clip_jax.models.model_config import TextConfig, VisionConfig
from clip_jax.models.tower import BlockSizes

Initializer = jax.nn.initializers.Initializer

normal = nnx.initializers.normal
_zeros = nnx.initializers.zeros_init()

# Variance 1 / fan-in, truncated at two standard deviations: Flax's default for Dense and Conv.
LECUN_NORMAL: Initializer = nnx.initializers.lecun_normal()
# Variance 2 / (fan-in + fan-out), uniform.
XAVIER_UNIFORM: Initializer = nnx.initializers.xavier_uniform()
# The same for each of several square matrices side by side, such as [width, 3 · width].
SQUARE_XAVIER_UNIFORM: Initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
# torch's default for weights of nn.Linear and nn.Conv2d: uniform within ±fan-in^-½, whose variance
# is 1 / (3 · fan-in).
TORCH_KERNEL: Initializer = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def cut_normal(std: float) -> Initializer:
    """Returns the initializer that draws N(0, std²), cut off at two standard deviations."""
    return nnx.initializers.truncated_normal(std)


def xavier_pair(inputs: int, outputs: int) -> Initializer:
    """Returns Xavier's uniform initializer for two matrices [inputs, outputs] side by side."""
    return nnx.initializers.variance_scaling(2 * inputs / (inputs + outputs), "fan_in", "uniform")


def zero_bias(fan_in: int) -> Initializer:
    """Returns zeros as initializer: Flax's default, and that of torch's MultiheadAttention."""
    del fan_in
    return _zeros


def torch_bias(fan_in: int) -> Initializer:
    """Returns torch's default initializer for biases of nn.Linear and nn.Conv2d.

    It is uniform within ±fan-in^-½.
    """
    bound = fan_in**-0.5
    from_zero = nnx.initializers.uniform(2 * bound)

    def draw(*args: Any, **options: Any) -> jax.Array:
        return from_zero(*args, **options) - bound

    return draw


def tiny_bias(fan_in: int) -> Initializer:
    """Returns the initializer of big_vision's MLP biases: normal with standard deviation 10^-6."""
    del fan_in
    return normal(1e-6)


def fan_out_normal(groups: int = 1) -> Initializer:
    """Returns the initializer of EfficientNet's convolutions: normal with variance 2 / fan-out.

    It is that of the TensorFlow code.

    Args:
      groups: the groups of the convolution; the fan-out is that of one. A depthwise convolution has
        as many groups as channels; its fan-out is that of one window.
    """
    return nnx.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class LinearInit:
    """The initializers of a linear layer.

    Attributes:
      kernel: the initializer of the kernel, [inputs, outputs].
      bias: maps the number of inputs to the initializer of the bias, [outputs].
    """

    kernel: Initializer
    bias: Callable[[int], Initializer] = zero_bias


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """The initializers of the linear layers of a Transformer block.

    Attributes:
      qkv: the projection to queries, keys and values, [width, 3 · width].
      out: the projection of the attention's output.
      fc, proj: the first and second layer of the MLP.
    """

    qkv: LinearInit
    out: LinearInit
    fc: LinearInit
    proj: LinearInit


@dataclasses.dataclass(frozen=True)
class VisionInit:
    """The initializers of a vision Transformer.

    Attributes:
      patches: the projection of the patches, and the convolutions of a stem.
      embeddings: positions, class token and registers.
      block: every block, and the attention pool.
      projection: the projection to the embedding space.
    """

    patches: LinearInit
    embeddings: Initializer
    block: BlockInit
    projection: LinearInit


@dataclasses.dataclass(frozen=True)
class TextInit:
    """Initializers of a text Transformer: two tables, every block, the projection."""

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

# big_vision's vit.py: Xavier for each matrix, biases of the MLPs close to zero.
SIGLIP_BLOCK = BlockInit(
    qkv=LinearInit(SQUARE_XAVIER_UNIFORM),
    out=LinearInit(SQUARE_XAVIER_UNIFORM),
    fc=LinearInit(XAVIER_UNIFORM, tiny_bias),
    proj=LinearInit(XAVIER_UNIFORM, tiny_bias),
)

# BERT's initializer_range for all matrices and tables, as transformers draws it (Google's
# TensorFlow code truncates it at two standard deviations).
BERT_NORMAL = normal(0.02)
BERT_LINEAR = LinearInit(BERT_NORMAL)
BERT_BLOCK = BlockInit(BERT_LINEAR, BERT_LINEAR, BERT_LINEAR, BERT_LINEAR)

# The matrices and tables of timm's vision Transformers, ConvNeXt and Swin. timm cuts them off at
# ±2, a hundred deviations away. EVA's code then shrinks the last layers of blocks by their depth,
# and starts the classifier a thousand times smaller.
TIMM_TABLE = normal(0.02)
TIMM_LINEAR = LinearInit(TIMM_TABLE)
TIMM_BLOCK = BlockInit(TIMM_LINEAR, TIMM_LINEAR, TIMM_LINEAR, TIMM_LINEAR)
EVA_CLASSIFIER = LinearInit(normal(0.001 * 0.02))


def t5_block(width: int, hidden: int, head: int) -> BlockInit:
    """Returns the initializers of T5's blocks, which have no biases.

    T5 does not divide the products of queries and keys by the root of the width of a head: its
    queries start smaller. Source: transformers' MT5PreTrainedModel, as in Mesh TensorFlow.
    """

    def qkv(key: Any, shape: Any, *args: Any, **options: Any) -> jax.Array:
        kernel = normal(width**-0.5)(key, shape, *args, **options)
        return kernel.at[..., : shape[-1] // 3].multiply(head**-0.5)

    into = LinearInit(normal(width**-0.5))
    return BlockInit(LinearInit(qkv), into, into, LinearInit(normal(hidden**-0.5)))


def clip_text_block(width: int, layers: int) -> BlockInit:
    """Returns the initializers of OpenAI's text blocks, scaled by the width.

    Output projections are scaled by the depth, too, so that the residual stream keeps its
    variance. OpenAI's code sets only weights; biases have torch's default.
    """
    out = normal((2 * width * layers) ** -0.5)
    return BlockInit(
        qkv=LinearInit(normal(width**-0.5)),
        out=LinearInit(out),
        fc=LinearInit(normal((2 * width) ** -0.5), torch_bias),
        proj=LinearInit(out, torch_bias),
    )


def _clip_vision(config: VisionConfig) -> VisionInit:
    """Returns OpenAI's initializers: torch's defaults, and three parameters scaled by the width."""
    scale = normal(config.width**-0.5)
    return VisionInit(TORCH, scale, CLIP_VISION_BLOCK, LinearInit(scale))


def siglip_vision(config: BlockSizes) -> VisionInit:
    """Returns big_vision's initializers: Flax's defaults, and positions scaled by the width.

    The blocks have initializers of their own. Source: big_vision's vit.py.
    """
    flax = LinearInit(LECUN_NORMAL)
    return VisionInit(flax, normal(config.width**-0.5), SIGLIP_BLOCK, flax)


# The family of a vision tower by its pooling. No family has mean pooling, a stem or registers: such
# a tower is initialised like CLIP's otherwise.
_VISION: dict[str, Callable[[VisionConfig], VisionInit]] = {
    "class": _clip_vision,
    "mean": _clip_vision,
    "map": siglip_vision,
}


def vision_init(config: VisionConfig) -> VisionInit:
    """Returns the initializers of a vision Transformer."""
    return _VISION[config.pool](config)


def text_init(config: TextConfig) -> TextInit:
    """Returns the initializers of a text Transformer.

    Towers with `pool="last"` are initialised like SigLIP's, in big_vision's text_transformer.py.
    All others, bags of words included, are initialised like OpenAI's.
    """
    by_width = normal(config.width**-0.5)
    if config.pool == "last":
        return TextInit(by_width, by_width, SIGLIP_BLOCK, LinearInit(LECUN_NORMAL))
    block = clip_text_block(config.width, max(config.layers, 1))  # a bag of words has none
    return TextInit(normal(0.02), normal(0.01), block, LinearInit(by_width))


def resnet_pool_init(width: int) -> LinearInit:
    """Returns the initializers of the attention pool of CLIP's ResNet.

    The kernel's initializer is also used for the positions. OpenAI's code sets only weights; biases
    have torch's default.
    """
    return LinearInit(normal(width**-0.5), torch_bias)
