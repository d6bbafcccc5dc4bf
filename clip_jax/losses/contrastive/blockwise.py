"""Contrastive losses from tiles of logits, which are recomputed for the gradients.

Each logit only adds to the sums of its row and of its column, so no device holds more than one tile
of them. The logits of the positives are not part of the tiles: they are dot products of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clip_jax.losses.contrastive.dense import LossAndMetrics
from clip_jax.losses.contrastive.masks import (
    FLOOR,
    accuracies,
    direction_weights,
    einsum_fp32,
    negative_mask,
    positive_cosines,
)
from clip_jax.losses.contrastive.tiling import (
    Max,
    Rows,
    Sum,
    SumExp,
    TilePlan,
    Totals,
    reduce_tiles,
)

Features = Float[Array, "n d"]
Scalar = Float[Array, ""]
Ids = Integer[Array, "n words"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def softmax(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    ids: Ids,
    label_smoothing: float,
    image_weight: float,
    plan: TilePlan,
) -> LossAndMetrics:
    """Computes the cross-entropy of `dense.softmax` from tiles."""
    features = image_features, text_features
    return _softmax_forward(*features, logit_scale, ids, label_smoothing, image_weight, plan)[0]


def _softmax_forward(
    image: Features,
    text: Features,
    scale: Scalar,
    ids: Ids,
    label_smoothing: float,
    image_weight: float,
    plan: TilePlan,
) -> tuple[LossAndMetrics, Any]:
    """Returns the loss with its metrics, and what the backward pass needs."""
    rows, columns = ({"features": x, "ids": ids} for x in (image, text))
    tile = partial(_softmax_tile, label_smoothing > 0)
    directions = reduce_tiles(tile, scale, rows, columns, plan)
    positives = scale * positive_cosines(image, text)
    # the leading axis of these totals: image to text, text to image
    (top_logit, total), *smoothing_totals = jax.tree.map(lambda *xs: jnp.stack(xs), *directions)
    # the log-sum-exp of the negatives minus the logit of the positive
    margin = jnp.log(total) + (top_logit - positives)
    weights = direction_weights(image_weight)
    negative_share = weights * jax.nn.sigmoid(margin)
    loss, positive_gradient = (weights * jax.nn.softplus(margin)).sum(0), -negative_share.sum(0)
    # the total is 0 for a row without negatives, and at least 1 for any other
    residuals = {"top_logit": top_logit, "weight": negative_share / jnp.maximum(total, 1)}
    if label_smoothing:
        negatives_sum, candidates = smoothing_totals[0].value, 1 + smoothing_totals[1].value
        smoothed = weights * label_smoothing
        smoothing = residuals["smoothing"] = smoothed / candidates
        loss += (smoothed * positives - smoothing * (positives + negatives_sum)).sum(0)
        positive_gradient += (smoothed - smoothing).sum(0)
    metrics = accuracies((positives,) * 2, (top_logit[0], top_logit[1]), scale)
    return (loss.mean() / 2, metrics), (image, text, scale, ids, positive_gradient, residuals)


def _softmax_tile(smoothed: bool, scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    """Returns the log-sum-exp of the negatives; for label smoothing, their sum and number too."""
    logits, mask = tile_logits(scale, row, column)
    masked_logits = jnp.where(mask, logits, -jnp.inf)

    def totals(axis: int) -> Totals:
        top_logit = masked_logits.max(axis=axis, initial=FLOOR)
        total = jnp.exp(masked_logits - jnp.expand_dims(top_logit, axis)).sum(axis=axis)
        if not smoothed:
            return (SumExp(top_logit, total),)
        negatives_sum = jnp.where(mask, logits, 0).sum(axis=axis)
        count = mask.sum(axis=axis, dtype=jnp.float32)
        return SumExp(top_logit, total), Sum(negatives_sum), Sum(count)

    return totals(1), totals(0)


def _softmax_backward(
    label_smoothing: float, image_weight: float, plan: TilePlan, saved: Any, cotangents: Any
) -> tuple[Array, Array, Array, None]:
    image, text, scale, ids, positive_gradient, residuals = saved
    rows, columns = (
        {"features": x, "ids": ids, **{name: stacked[i] for name, stacked in residuals.items()}}
        for i, x in enumerate((image, text))
    )
    (image_total,), (text_total,) = reduce_tiles(_softmax_gradient_tile, scale, rows, columns, plan)
    gradients = _add_positives(image_total.value, text_total.value, positive_gradient, image, text)
    return *scale_gradients(cotangents[0] / (2 * len(image)), *gradients, image, text, scale), None


def _softmax_gradient_tile(scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    """Returns the gradients with respect to the features, through the logits of the negatives."""
    logits, mask = tile_logits(scale, row, column)
    gradient = jnp.exp(logits - row["top_logit"][:, None]) * row["weight"][:, None]
    gradient += jnp.exp(logits - column["top_logit"]) * column["weight"]
    if "smoothing" in row:
        gradient -= row["smoothing"][:, None] + column["smoothing"]
    return feature_gradients(jnp.where(mask, gradient, 0), row, column)


softmax.defvjp(_softmax_forward, _softmax_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sigmoid(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    logit_bias: Scalar,
    ids: Ids,
    plan: TilePlan,
) -> LossAndMetrics:
    """Computes the sigmoid loss of `dense.sigmoid` from tiles.

    It is the sum of -log σ(±logit) over all pairings that are not masked.
    """
    features = image_features, text_features
    return _sigmoid_forward(*features, logit_scale, logit_bias, ids, plan, with_gradients=False)[0]


def _sigmoid_forward(
    image: Features,
    text: Features,
    scale: Scalar,
    bias: Scalar,
    ids: Ids,
    plan: TilePlan,
    with_gradients: bool = True,
) -> tuple[LossAndMetrics, Any]:
    """Returns the loss with its metrics, and its gradients.

    The loss is a sum over logits, so the same pass over the tiles gives the gradients too.
    """
    rows, columns = ({"features": x, "ids": ids} for x in (image, text))
    tile = partial(_sigmoid_tile, with_gradients)
    by_row, by_column = reduce_tiles(tile, (scale, bias), rows, columns, plan)
    positives = bias + scale * positive_cosines(image, text)
    max_negatives = by_row[0].value, by_column[0].value
    loss = (by_row[1].value + jax.nn.softplus(-positives)).mean()
    metrics = accuracies((positives,) * 2, max_negatives, scale)
    if not with_gradients:
        return (loss, metrics), None
    positive_gradient = -jax.nn.sigmoid(-positives)
    gradients = _add_positives(by_row[3].value, by_column[1].value, positive_gradient, image, text)
    bias_gradient = (by_row[2].value + positive_gradient).mean()
    scaled = scale_gradients(1 / len(image), *gradients, image, text, scale)
    return (loss, metrics), (*scaled, bias_gradient)


def _sigmoid_tile(
    with_gradients: bool, shared: tuple[Scalar, Scalar], row: Rows, column: Rows
) -> tuple[Totals, Totals]:
    """Returns the totals of a tile by row and by column.

    By row: the maximum, the loss, the gradients by the bias and by the features. By column: the
    maximum, the gradient by the features.
    """
    scale, bias = shared
    logits, mask = tile_logits(scale, row, column)
    logits = jnp.where(mask, logits + bias, -jnp.inf)
    by_row: Totals = Max(logits.max(axis=1, initial=FLOOR)), Sum(jax.nn.softplus(logits).sum(1))
    by_column: Totals = (Max(logits.max(axis=0, initial=FLOOR)),)
    if with_gradients:
        gradient = jax.nn.sigmoid(logits)
        row_total, column_total = feature_gradients(gradient, row, column)
        by_row = (*by_row, Sum(gradient.sum(axis=1)), *row_total)
        by_column = (*by_column, *column_total)
    return by_row, by_column


def _sigmoid_backward(
    plan: TilePlan, gradients: Any, cotangents: Any
) -> tuple[Array, Array, Array, Array, None]:
    return *(cotangents[0].astype(x.dtype) * x for x in gradients), None


sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def tile_logits(
    scale: Scalar, row: Rows, column: Rows
) -> tuple[Float[Array, "r c"], Bool[Array, "r c"]]:
    """Returns the logits of a tile, and the mask of its negatives."""
    mask = without_padding(negative_mask(row["ids"], column["ids"]), row, column)
    return scale * einsum_fp32("id,jd->ij", row["features"], column["features"]), mask


def without_padding(mask: Bool[Array, "r c"], row: Rows, column: Rows) -> Bool[Array, "r c"]:
    """Removes the rows and columns that only pad a tile from a mask over it."""
    if "valid" in row:
        mask &= row["valid"][:, None]
    if "valid" in column:
        mask &= column["valid"]
    return mask


def feature_gradients(
    gradient: Float[Array, "r c"], row: Rows, column: Rows
) -> tuple[tuple[Sum], tuple[Sum]]:
    """Turns the gradient with respect to a tile's cosines into those of its features.

    Returns:
      The gradients with respect to the row features and to the column features.
    """
    by_row = einsum_fp32("ij,jd->id", gradient, column["features"].astype(jnp.float32))
    by_column = einsum_fp32("ij,id->jd", gradient, row["features"].astype(jnp.float32))
    return (Sum(by_row),), (Sum(by_column),)


def _add_positives(
    image_gradient: Features,
    text_gradient: Features,
    positive_gradient: Float[Array, " n"],
    image: Array,
    text: Array,
) -> tuple[Features, Features]:
    """Adds the gradients through the positives to those through the negatives."""
    return (
        image_gradient + positive_gradient[:, None] * text,
        text_gradient + positive_gradient[:, None] * image,
    )


def scale_gradients(
    factor: Scalar | float,
    image_gradient: Features,
    text_gradient: Features,
    image: Array,
    text: Array,
    scale: Scalar,
) -> tuple[Array, Array, Array]:
    """Computes the gradients by both features and by the scale.

    A logit is a cosine times the scale.
    """
    scale_gradient = factor * jnp.sum(image * image_gradient)
    image_gradient = (factor * scale * image_gradient).astype(image.dtype)
    return image_gradient, (factor * scale * text_gradient).astype(text.dtype), scale_gradient
