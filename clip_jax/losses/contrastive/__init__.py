"""The N×N similarities of a global batch and the losses on them.

One loss in three layouts. `dense` has all logits at once and XLA partitions them. `blockwise` and
`ring` have a tile of them at a time, and make each a second time for the gradients.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from clip_jax.errors import UserError
from clip_jax.losses.contrastive import blockwise, dense
from clip_jax.losses.contrastive.masks import caption_ids
from clip_jax.losses.contrastive.tiling import Plan, make_plan

__all__ = ["LAYOUTS", "caption_ids", "check", "choose_layout", "sigmoid_loss", "softmax_loss"]

LAYOUTS = ("auto", "dense", "blockwise", "ring")

_DENSE_LOGITS = 2**24  # 64 MiB in fp32

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
      UserError: a layout, block or label smoothing that there is not.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(
            f"config.loss.label_smoothing={label_smoothing} must be a share, from 0 to below 1"
        )
    features, ids = (image_features, text_features), _or_rows(ids, len(image_features))
    plan = _plan(layout, block, len(image_features))
    if plan.layout == "dense":
        return dense.softmax(*features, logit_scale, ids, label_smoothing)
    return blockwise.softmax(*features, logit_scale, ids, label_smoothing, plan)


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
      UserError: a layout or block that there is not.
    """
    features, ids = (image_features, text_features), _or_rows(ids, len(image_features))
    plan = _plan(layout, block, len(image_features))
    if plan.layout == "dense":
        return dense.sigmoid(*features, logit_scale, logit_bias, ids)
    return blockwise.sigmoid(*features, logit_scale, logit_bias, ids, plan)


def choose_layout(n: int, devices: int = 1) -> str:
    """What the layout `auto` comes to for n pairs, split over devices.

    Dense while its logits take at most 64 MiB a device: there it is as fast as any and its program
    the simplest. Beyond that blockwise, which by the table of docs/benchmarks.md needs the least
    memory, whatever the number of devices.
    """
    return "dense" if n * n <= devices * _DENSE_LOGITS else "blockwise"


def check(layout: str, block: int) -> None:
    """UserError where there is no such layout, or no tiles of so many rows."""
    if layout not in LAYOUTS:
        raise UserError(f"config.loss.layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    if block < 0:
        raise UserError(f"config.loss.block={block} must be a number of rows, or 0 for a default")


def _plan(layout: str, block: int, n: int) -> Plan:
    check(layout, block)
    plan = make_plan(layout, block, n)
    return plan._replace(layout=choose_layout(n, plan.devices)) if layout == "auto" else plan


def _or_rows(ids: Integer[Array, "n words"] | None, n: int) -> Integer[Array, "n words"]:
    """The ids, or those of n rows that all differ."""
    return jnp.arange(n, dtype=jnp.uint32)[:, None] if ids is None else ids
