"""Model FLOPs of a step, as MFU counts them (Chowdhery et al. 2022, appendix B).

Two for each multiplication and addition of matrix products and convolutions, and nothing else.
Recomputation to save memory is not counted. Attention counts in full although a mask hides half of
it, and so do windows that reach over an edge and a last block of which one token is read: others
count so too, and their MFU can be compared.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from clip_jax.losses.objective import Objective
from clip_jax.models.model_config import CLIPConfig


class Forward(NamedTuple):
    """FLOPs of the forward pass of an image and of a text."""

    image: int
    text: int


def forward(config: CLIPConfig, *, tokens: int | None = None) -> Forward:
    """FLOPs of the towers for one pair of a training batch.

    Args:
      config: the architecture. Only patches that patch dropout keeps are counted.
      tokens: tokens of a text, padding included; None: the context length.
    """
    tokens = config.text.context_length if tokens is None else tokens
    embed_dim = config.embed_dim
    return Forward(config.vision.flops(embed_dim), config.text.flops(embed_dim, tokens))


def step(
    config: CLIPConfig,
    objective: Objective,
    batch_size: int,
    *,
    tokens: int | None = None,
    frozen: Collection[str] = (),
    idle: Collection[str] = (),
) -> int:
    """FLOPs of a training step over a batch, on all devices together.

    Three times the forward pass: in the backward pass each product has a gradient by either factor.
    The gradient by the pixels counts too, although nothing needs it. A frozen tower has a forward
    pass alone.

    Args:
      config: the architecture.
      objective: whose loss is counted.
      batch_size: pairs of the whole batch.
      tokens: as of `forward`.
      frozen: `vision`, `text`, or both, if no parameter of that tower learns.
      idle: towers that do not run, because their features were computed before.
    """
    image, text = forward(config, tokens=tokens)
    passes = {t: 0 if t in idle else 1 if t in frozen else 3 for t in ("vision", "text")}
    towers = image * passes["vision"] + text * passes["text"]
    return batch_size * towers + 3 * objective.flops(config, batch_size)
