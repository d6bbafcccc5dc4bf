"""What a step costs by formula: the model FLOPs of MFU (Chowdhery et al. 2022, appendix B).

Two for each multiplication and addition of matrix products and convolutions, and nothing else. What
is computed again to save memory counts once, and whole count attention of which a mask hides half,
windows that reach over an edge, and a last block of which one place is read: so they do for others,
whose MFU then tells as much.
"""

from __future__ import annotations

from typing import NamedTuple

from clip_jax.losses.objective import Objective
from clip_jax.models.model_config import (
    CLIPConfig,
    EfficientNetConfig,
    ImageTowerConfig,
    ResNetConfig,
    TextTowerConfig,
    VisionConfig,
)

_RGB = 3


class Forward(NamedTuple):
    """FLOPs of an image and of a text on their way through their towers."""

    image: int
    text: int


def forward(config: CLIPConfig, *, tokens: int | None = None) -> Forward:
    """FLOPs of the towers for one pair of a training batch.

    Args:
      config: the architecture; of its patches those are counted that patch dropout leaves.
      tokens: a text's, padding included; None: as many as the tower takes.
    """
    tokens = config.text.context_length if tokens is None else tokens
    return Forward(
        _image(config.vision, config.embed_dim), _text(config.text, config.embed_dim, tokens)
    )


def step(
    config: CLIPConfig, objective: Objective, batch_size: int, *, tokens: int | None = None
) -> int:
    """FLOPs of a training step over a batch, on all devices together.

    Three times the forward pass, as backwards each product has a gradient by either factor; that
    by the pixels counts too, though nobody asks for it.

    Args:
      config: the architecture.
      objective: whose loss is counted.
      batch_size: pairs of the whole batch.
      tokens: as of `forward`.
    """
    towers = batch_size * sum(forward(config, tokens=tokens))
    return 3 * (towers + objective.flops(config, batch_size))


def _product(rows: int, inputs: int, outputs: int) -> int:
    """Of matrices [rows, inputs] and [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def _image(tower: ImageTowerConfig, embed_dim: int) -> int:
    if isinstance(tower, VisionConfig):
        return _vit(tower, embed_dim)
    return _resnet(tower, embed_dim) if isinstance(tower, ResNetConfig) else _efficientnet(tower)


def _text(tower: TextTowerConfig, embed_dim: int, tokens: int) -> int:
    return _transformer(tower, tokens) + _product(1, tower.width, embed_dim)


def _attention(queries: int, keys: int, width: int) -> int:
    """From queries, keys and values to what is attended to; no projection."""
    return _product(queries, width, keys) + _product(queries, keys, width)


def _pool(places: int, width: int) -> int:
    """One query's attention to all places, with the projections of queries, keys and values."""
    projections = _product(1, width, width) + _product(places, width, 2 * width)
    return projections + _attention(1, places, width)


def _mlp(tower: VisionConfig | TextTowerConfig, rows: int) -> int:
    return 2 * _product(rows, tower.width, round(tower.width * tower.mlp_ratio))


def _transformer(tower: VisionConfig | TextTowerConfig, length: int) -> int:
    width = tower.width
    projections = _product(length, width, 3 * width) + _product(length, width, width)
    block = projections + _attention(length, length, width) + _mlp(tower, length)
    return tower.layers * block


def _vit(tower: VisionConfig, embed_dim: int) -> int:
    width, patches = tower.width, (tower.image_size // tower.patch_size) ** 2
    found = _patches(tower, patches)
    kept = max(1, round(patches * (1 - tower.patch_dropout)))
    length = kept + (tower.pool == "class") + tower.registers
    found += _transformer(tower, length)
    if tower.pool == "map":  # which sees no registers
        found += _pool(kept, width) + _product(1, width, width) + _mlp(tower, 1)
    return found + (_product(1, width, embed_dim) if tower.projection else 0)


def _patches(tower: VisionConfig, patches: int) -> int:
    """From pixels to patches of the blocks' width."""
    pixels = tower.patch_size**2 * _RGB
    if not tower.stem:
        return _product(patches, pixels, tower.width)
    places = (tower.image_size // (tower.patch_size // 2)) ** 2
    convolutions = _product(places, pixels + 9 * tower.stem, tower.stem)
    return convolutions + _product(patches, 4 * tower.stem, tower.width)


def _resnet(tower: ResNetConfig, embed_dim: int) -> int:
    width, side = tower.width, tower.image_size // 2
    half = width // 2
    found = _product(side**2, 9 * _RGB, half) + _product(side**2, 9 * half, half + width)
    side, inputs = side // 2, width
    for stage, depth in enumerate(tower.layers):
        planes = width * 2**stage
        outputs = 4 * planes
        for block in range(depth):
            stride = 2 if stage and not block else 1
            found += _product(side**2, inputs + 9 * planes, planes)
            side //= stride  # a pool between the second convolution and the third
            found += _product(side**2, planes, outputs)
            if stride > 1 or inputs != outputs:
                found += _product(side**2, inputs, outputs)
            inputs = outputs
    return found + _pool(side**2 + 1, inputs) + _product(1, inputs, embed_dim)


def _efficientnet(tower: EfficientNetConfig) -> int:
    side = _side(tower.image_size, 3, 2, 1)
    found = _product(side**2, 9 * _RGB, tower.channels(tower.stem))
    blocks = 0
    for size, stride, expansion, inputs, outputs, repeats in tower.stages:
        inputs, outputs = tower.channels(inputs), tower.channels(outputs)
        for block in range(tower.repeats(repeats)):
            if block:
                stride, inputs = 1, outputs
            hidden, squeezed = inputs * expansion, max(1, int(inputs * tower.squeeze))
            if expansion > 1:
                found += _product(side**2, inputs, hidden)
            even = stride == 1 or blocks in tower.symmetric
            side = _side(side, size, stride, 2 * (size // 2) - (not even))
            found += _product(side**2, size**2, hidden)  # every channel for itself
            found += 2 * _product(1, hidden, squeezed) + _product(side**2, hidden, outputs)
            blocks += 1
    return found


def _side(side: int, size: int, stride: int, padding: int) -> int:
    """Of what a convolution makes of a square."""
    return (side + padding - size) // stride + 1
