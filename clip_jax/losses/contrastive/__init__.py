"""Contrastive losses on the N×N similarities of a global batch.

Each loss has three layouts. `dense` holds all logits at once, partitioned by XLA. `blockwise` and
`ring` hold one tile of logits at a time and recompute it for the gradients. `multi_positive` is the
variant in which a row has several positives.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from clip_jax.errors import UserError
from clip_jax.losses.contrastive import blockwise, dense, multi_positive
from clip_jax.losses.contrastive.masks import caption_ids
from clip_jax.losses.contrastive.tiling import TilePlan, make_tile_plan
from clip_jax.losses.objective import Metrics

__all__ = [
    "LAYOUTS", "caption_ids", "check_layout", "choose_layout", "sigmoid_loss", "softmax_loss",
]  # fmt: skip

LAYOUTS = ("auto", "dense", "blockwise", "ring")

_MAX_DENSE_LOGITS = 2**24  # per device: 64 MiB in fp32


def softmax_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    *,
    layout: str = "dense",
    ids: Integer[Array, "n words"] | None = None,
    groups: Integer[Array, "n group_words"] | None = None,
    label_smoothing: float = 0.0,
    image_weight: float = 0.5,
    block: int = 0,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes the symmetric cross-entropy over the pairings of the global batch (CLIP's loss).

    Source: section 2.3, figure 3. Row i of the images and row i of the texts are a positive pair.
    The rows may be sharded over the mesh of the tracing context. Sums are fp32; each gradient has
    the dtype of its features.

    Args:
      image_features: unit-norm features of the images.
      text_features: unit-norm features of the texts, one row for each image.
      logit_scale: the factor on the cosines.
      layout: one of `LAYOUTS`; all give the same numbers.
      ids: rows with equal ids are not negatives of each other; None: all rows differ.
      groups: rows with equal groups are positives of each other, see `multi_positive`; None: each
        row has one positive.
      label_smoothing: the share of a row's target that is spread over all its candidates.
      image_weight: the weight of the direction image to text; that of the other is the rest to 1.
      block: rows and columns of a tile; 0: a good default.

    Returns:
      The weighted mean of both directions, and for each direction the share of rows whose positive
      has the largest logit.

    Raises:
      UserError: an invalid layout, block, label smoothing or weight.
    """
    if not 0 <= image_weight <= 1:
        raise UserError(f"config.loss.image_weight={image_weight} must be a share, from 0 to 1")
    if not 0 <= label_smoothing < 1:
        raise UserError(
            f"config.loss.label_smoothing={label_smoothing} must be a share, from 0 to below 1"
        )
    features, ids = (image_features, text_features), _ids_or_default(ids, len(image_features))
    plan = _tile_plan(layout, block, len(image_features))
    options = label_smoothing, image_weight
    if groups is not None:
        return multi_positive.softmax(*features, logit_scale, ids, groups, *options, plan)
    if plan.layout == "dense":
        return dense.softmax(*features, logit_scale, ids, *options)
    return blockwise.softmax(*features, logit_scale, ids, *options, plan)


def sigmoid_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    layout: str = "dense",
    ids: Integer[Array, "n words"] | None = None,
    groups: Integer[Array, "n group_words"] | None = None,
    block: int = 0,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes SigLIP's loss: a binary classification of each pairing of the global batch.

    Source: Zhai et al. 2023, algorithm 1. The arguments are those of `softmax_loss`; pairings of
    two different rows with equal ids are ignored, unless they have equal groups.

    Returns:
      The sum over the texts of an image, averaged over images, and for each direction the share of
      rows whose positive has the largest logit.

    Raises:
      UserError: an invalid layout or block.
    """
    features, ids = (image_features, text_features), _ids_or_default(ids, len(image_features))
    plan = _tile_plan(layout, block, len(image_features))
    if groups is not None:
        return multi_positive.sigmoid(*features, logit_scale, logit_bias, ids, groups, plan)
    if plan.layout == "dense":
        return dense.sigmoid(*features, logit_scale, logit_bias, ids)
    return blockwise.sigmoid(*features, logit_scale, logit_bias, ids, plan)


def choose_layout(n: int, devices: int = 1) -> str:
    """Resolves the layout `auto` for n pairs that are sharded over devices.

    The result is `dense` while its logits need at most 64 MiB per device: at that size it is as
    fast as any layout and its program is the simplest. Beyond that it is `blockwise`, which needs
    the least memory for any number of devices (table in docs/benchmarks.md).
    """
    return "dense" if n * n <= devices * _MAX_DENSE_LOGITS else "blockwise"


def check_layout(layout: str, block: int) -> None:
    """Raises a UserError for an unknown layout or an impossible block size."""
    if layout not in LAYOUTS:
        raise UserError(f"config.loss.layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    if block < 0:
        raise UserError(f"config.loss.block={block} must be a number of rows, or 0 for a default")


def _tile_plan(layout: str, block: int, n: int) -> TilePlan:
    check_layout(layout, block)
    plan = make_tile_plan(layout, block, n)
    return plan._replace(layout=choose_layout(n, plan.devices)) if layout == "auto" else plan


def _ids_or_default(ids: Integer[Array, "n words"] | None, n: int) -> Integer[Array, "n words"]:
    """Returns the ids, or n distinct ones if there are none."""
    return jnp.arange(n, dtype=jnp.uint32)[:, None] if ids is None else ids
