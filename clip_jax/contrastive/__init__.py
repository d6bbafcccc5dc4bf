"""The N×N similarities of a global batch and the losses on them.

One loss in three layouts. `dense` has all logits at once and XLA partitions them. `blockwise` and
`ring` have a tile of them at a time, and make each a second time for the gradients.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from clip_jax.contrastive import dense, tiled
from clip_jax.contrastive.pairs import caption_ids
from clip_jax.contrastive.sweep import make_plan
from clip_jax.errors import UserError

__all__ = ["LAYOUTS", "caption_ids", "sigmoid_loss", "softmax_loss"]

LAYOUTS = ("auto", "dense", "blockwise", "ring")

Metrics = dict[str, Float[Array, ""]]


def softmax_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    *,
    layout: str = "dense",
    ids: Integer[Array, "n words"] | None = None,
    label_smoothing: float = 0.0,
    block: int = 0,
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric cross-entropy over the pairings of the whole batch (section 2.3, figure 3).

    Row i of both belongs together. Written for the global batch, whose rows lie over the mesh of
    the tracing context, if there is one. Sums are fp32; a gradient has its features' dtype.

    Args:
      image_features: unit-norm, as `text_features`.
      text_features: a row for every image.
      logit_scale: the factor on the cosines.
      layout: one of `LAYOUTS`; all give the same numbers.
      ids: two rows of equal ids are not each other's negatives; None: all rows differ.
      label_smoothing: the share of a row's target that is spread over all its candidates.
      block: rows and columns of a tile; 0: a good default.

    Returns:
      The mean of both directions, and the shares of rows whose own partner is the likeliest.

    Raises:
      UserError: there is no such layout, or no such label smoothing.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing is {label_smoothing}: it is a share, from 0 to below 1")
    _known(layout)
    features, ids = (image_features, text_features), _or_rows(ids, len(image_features))
    if layout == "dense":
        return dense.softmax(*features, logit_scale, ids, label_smoothing)
    plan = make_plan(layout, block, len(image_features))
    return tiled.softmax(*features, logit_scale, ids, label_smoothing, plan)


def sigmoid_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    layout: str = "dense",
    ids: Integer[Array, "n words"] | None = None,
    block: int = 0,
) -> tuple[Float[Array, ""], Metrics]:
    """Whether each of the batch's pairings belongs together, asked one by one (SigLIP).

    Source: Zhai et al. 2023, algorithm 1. Arguments as those of `softmax_loss`; two rows of equal
    ids are not asked about each other.

    Returns:
      The sum over an image's texts, averaged over images; the shares of rows whose own partner is
      the likeliest.

    Raises:
      UserError: there is no such layout.
    """
    _known(layout)
    features, ids = (image_features, text_features), _or_rows(ids, len(image_features))
    if layout == "dense":
        return dense.sigmoid(*features, logit_scale, logit_bias, ids)
    plan = make_plan(layout, block, len(image_features))
    return tiled.sigmoid(*features, logit_scale, logit_bias, ids, plan)


def _known(layout: str) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"loss.layout {layout!r} is not known: one of {', '.join(LAYOUTS)}")


def _or_rows(ids: Integer[Array, "n words"] | None, n: int) -> Integer[Array, "n words"]:
    """The ids, or those of n rows that all differ."""
    return jnp.arange(n, dtype=jnp.uint32)[:, None] if ids is None else ids
