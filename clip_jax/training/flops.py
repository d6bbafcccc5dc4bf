"""Model FLOPs of a step, as MFU counts them (Chowdhery et al. 2022, appendix B).

Each multiplication and each addition of matrix products and convolutions counts as one FLOP, and
nothing else counts. Recomputation to save memory is not counted. Three kinds of unneeded work count
in full, because others count them too and their MFU can then be compared: attention although a mask
hides half of it, windows that reach over an edge, and a last block of which one token is read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from clip_jax.losses.objective import Objective
from clip_jax.models.model_config import CLIPConfig


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
    """Returns the FLOPs of a training step over a batch, on all devices together.

    A step costs three times its forward pass: the backward pass has two products for each product,
    the gradients by its two factors. The gradient by the pixels counts too, although nothing needs
    it. A frozen tower has a forward pass alone.

    Args:
      config: the architecture.
      objective: the objective whose loss is counted.
      batch_size: the number of pairs in the global batch.
      tokens: as for `forward`.
      frozen: `vision`, `text`, or both, if no parameter of that tower learns.
      idle: the towers that do not run, because their features were computed before.
    """
    image, text = forward(config, tokens=tokens)
    passes = {t: 0 if t in idle else 1 if t in frozen else 3 for t in ("vision", "text")}
    towers = image * passes["vision"] + text * passes["text"]
    return batch_size * towers + 3 * objective.flops(config, batch_size)
