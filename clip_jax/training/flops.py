"""Model FLOPs of a step, as MFU counts them (Chowdhery et al. 2022, appendix B).

Each multiplication and each addition of matrix products and convolutions counts as one FLOP, and
nothing else counts. Recomputation to save memory is not counted. Three kinds of unneeded work count
in full, because others count them too and their MFU can then be compared: attention although a mask
hides half of it, windows that reach over an edge, and a last block of which one token is read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from clip_jax.config.finetune_schema import Lora
from clip_jax.distributed.param_spec import ParamSpec, param_specs
from clip_jax.losses.objective import Objective
from clip_jax.models import flop_counts
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import BlockSizes, Tower
from clip_jax.optim.param_groups import ParamGroups, named_leaves


class Forward(NamedTuple):
    """The FLOPs of the forward pass of one image and of one text."""

    image: int
    text: int


def forward(config: CLIPConfig, *, tokens: int | None = None) -> Forward:
    """Returns the FLOPs of the towers' forward pass for one pair of a training batch.

    Args:
      config: the architecture. Only patches that patch dropout keeps are counted.
      tokens: the number of tokens of a text, padding included; None: the context length.
    """
    tokens = config.text.context_length if tokens is None else tokens
    features, second = config.tower_features, 0
    if config.projection_width:
        second = flop_counts.product(1, features, config.embed_dim)
    return Forward(
        config.vision.flops(features) + second, config.text.flops(features, tokens) + second
    )


def step(
    config: CLIPConfig,
    objective: Objective,
    batch_size: int,
    *,
    tokens: int | None = None,
    groups: ParamGroups | None = None,
    lora: Lora | None = None,
    idle: Collection[str] = (),
) -> int:
    """Returns the FLOPs of a training step over a batch, on all devices together.

    A step in which everything learns costs three times its forward pass: the backward pass has two
    products for each product, the gradients by its two factors. The gradient by the pixels counts
    too, although nothing needs it.

    The gradient by a kernel counts only if the kernel learns, layer by layer; a compiled step may
    compute those of frozen layers too, if other layers of their stack learn. Gradients by
    activations count for a whole tower if any of its parameters learns. A frozen tower has a
    forward pass alone.

    Args:
      config: the architecture.
      objective: the objective whose loss is counted.
      batch_size: the number of pairs in the global batch.
      tokens: as for `forward`.
      groups: the parameters that learn; None: all.
      lora: the adapters, which `groups` knows too.
      idle: the towers that do not run, because their features were computed before.
    """
    counts = forward(config, tokens=tokens)
    tokens = config.text.context_length if tokens is None else tokens
    sides: list[tuple[str, Tower, int, int]] = [
        ("vision", config.vision, counts.image, config.vision.tokens),
        ("text", config.text, counts.text, tokens),
    ]
    sizes = None if groups is None else _kernel_sizes(config, groups, lora)
    towers = 0
    for side, tower, flops, length in sides:
        if side in idle:
            continue
        if groups is None or sizes is None:
            towers += 3 * flops
        else:
            towers += _tower(tower, flops, length, sizes[side], side in groups.frozen_towers)
    return batch_size * towers + 3 * objective.flops(config, batch_size)


class _Sizes(NamedTuple):
    """Numbers of values of a tower's kernels: [of Transformer blocks, of other layers]."""

    kernels: np.ndarray
    adapters: np.ndarray
    learning: np.ndarray  # of both


def _kernel_sizes(config: CLIPConfig, groups: ParamGroups, lora: Lora | None) -> dict[str, _Sizes]:
    model = abstract_model(config, lora=lora)
    specs = param_specs(model)
    towers: dict[str, Tower] = {"vision": config.vision, "text": config.text}
    sizes = {side: _Sizes(*np.zeros((3, 2), np.int64)) for side in towers}
    for name, leaf in named_leaves(variables(model)[0]):
        side, spec = name.partition("/")[0], specs[name]
        if side not in towers or not _is_kernel(spec):
            continue
        place = 0 if spec.stacked and towers[side].blocks else 1
        learns = [int(i) in groups.learning for i in np.ravel(groups.assignment[name])]
        (sizes[side].adapters if spec.adapter else sizes[side].kernels)[place] += leaf.size
        sizes[side].learning[place] += leaf.size * sum(learns) // len(learns)
    return sizes


def _is_kernel(spec: ParamSpec) -> bool:
    """Returns whether a parameter is a factor of a product or of a convolution."""
    return spec.matrix or len(spec.in_layer().axes) > 2


def _tower(tower: Tower, flops: int, tokens: int, sizes: _Sizes, frozen: bool) -> int:
    """Returns the FLOPs of a step for one row of a tower.

    A kernel of a Transformer block is applied to each token. The other kernels share what is left
    of the forward pass by their sizes, which is rough for convolutions.

    Args:
      tower: the tower.
      flops: those of the forward pass, without adapters.
      tokens: the tokens of a row.
      sizes: its kernels.
      frozen: whether no parameter learns.
    """
    attention = 0  # products of activations, which have no kernel
    if tower.blocks and isinstance(tower, BlockSizes):
        attention = tower.blocks * flop_counts.attention(tokens, tokens, tower.width)
    blocks, others = map(int, sizes.kernels)
    left = flops - attention - 2 * tokens * blocks

    def products(values: Any) -> int:
        in_blocks, elsewhere = map(int, values)
        return 2 * tokens * in_blocks + (left * elsewhere // others if others else 0)

    flops += products(sizes.adapters)
    return flops if frozen else 2 * flops + attention + products(sizes.learning)
