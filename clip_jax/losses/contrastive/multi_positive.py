"""Contrastive losses in which all rows of one group are positives of each other.

The candidates of a row are its positives and its negatives. A negative is a row of another group
whose id differs too.

Softmax: the target of a row is spread evenly over its positives, in both directions. The loss of a
row is the mean of -log p over them, p being the softmax over all candidates. Sources: L_out of
Khosla et al. 2020, Supervised Contrastive Learning, equation 2; between images and texts: Yang et
al. 2022, Unified Contrastive Learning in Image-Text-Label Space, equations 2 to 4.

Sigmoid: the label of a pairing is +1 for every positive, -1 for every negative. Source: Bulat et
al. 2024, FFF: Fixing Flawed Foundations in Contrastive Pre-training.

With groups that all differ both are the losses of `dense` and `blockwise`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clip_jax.losses.contrastive.blockwise import (
    Features,
    Ids,
    Scalar,
    feature_gradients,
    scale_gradients,
    tile_logits,
    without_padding,
)
from clip_jax.losses.contrastive.dense import LossAndMetrics, mean_of_directions, per_row, to_fp32
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

Groups = Integer[Array, "n group_words"]
Logits = Float[Array, "r c"]
Mask = Bool[Array, "r c"]


def softmax(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    ids: Ids,
    groups: Groups,
    label_smoothing: float,
    image_weight: float,
    plan: TilePlan,
) -> LossAndMetrics:
    """Computes the cross-entropy with targets that are spread evenly over the positives.

    The arguments are those of `blockwise.softmax`, and the groups.
    """
    arrays = image_features, text_features, logit_scale, ids, groups
    if plan.layout == "dense":
        return _dense_softmax(*arrays, label_smoothing, image_weight)
    return _tiled_softmax(*arrays, label_smoothing, image_weight, plan)


def sigmoid(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    logit_bias: Scalar,
    ids: Ids,
    groups: Groups,
    plan: TilePlan,
) -> LossAndMetrics:
    """Computes the sum of -log σ(±logit) over the candidates of an image, averaged over images."""
    arrays = image_features, text_features, logit_scale, logit_bias, ids, groups
    return _dense_sigmoid(*arrays) if plan.layout == "dense" else _tiled_sigmoid(*arrays, plan)


def _dense_masks(ids: Ids, groups: Groups) -> tuple[Mask, Mask]:
    """Returns the mask of the positives, and that of all candidates."""
    positive = ~negative_mask(groups, groups)
    return positive, positive | negative_mask(ids, ids)


def _largest(logits: Logits, mask: Mask, axis: int) -> Float[Array, " n"]:
    """Returns the largest logit of a mask along an axis, without a gradient; `FLOOR` if none."""
    return jax.lax.stop_gradient(jnp.where(mask, logits, FLOOR).max(axis=axis, initial=FLOOR))


def _dense_metrics(
    logits: Logits, positive: Mask, candidate: Mask, logit_scale: Scalar
) -> dict[str, Scalar]:
    positives, negatives = (
        (_largest(logits, mask, 1), _largest(logits, mask, 0))
        for mask in (positive, candidate & ~positive)
    )
    return accuracies(positives, negatives, logit_scale)


def _dense_softmax(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    ids: Ids,
    groups: Groups,
    label_smoothing: float,
    image_weight: float,
) -> LossAndMetrics:
    image_features, text_features = to_fp32(image_features, text_features)
    positive, candidate = _dense_masks(ids, groups)
    scale = per_row(logit_scale, ids)
    logits = scale * einsum_fp32("id,jd->ij", image_features, text_features)

    def cross_entropy(axis: int) -> Float[Array, " n"]:
        top_logit = jnp.expand_dims(_largest(logits, candidate, axis), axis)
        shifted = jnp.where(candidate, logits - top_logit, -jnp.inf)

        def mean(mask: Mask) -> Float[Array, " n"]:
            return jnp.where(mask, shifted, 0).sum(axis) / mask.sum(axis)

        loss = jnp.log(jnp.exp(shifted).sum(axis)) - (1 - label_smoothing) * mean(positive)
        return loss - label_smoothing * mean(candidate) if label_smoothing else loss

    loss = mean_of_directions(cross_entropy(1), cross_entropy(0), image_weight)
    return loss, _dense_metrics(logits, positive, candidate, logit_scale)


def _dense_sigmoid(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    logit_bias: Scalar,
    ids: Ids,
    groups: Groups,
) -> LossAndMetrics:
    image_features, text_features = to_fp32(image_features, text_features)
    positive, candidate = _dense_masks(ids, groups)
    logits = per_row(logit_scale, ids) * einsum_fp32("id,jd->ij", image_features, text_features)
    logits += per_row(logit_bias, ids)
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    loss = jnp.where(candidate, losses, 0).sum(axis=1).mean()
    return loss, _dense_metrics(logits, positive, candidate, logit_scale)


def _tile_masks(scale: Scalar, row: Rows, column: Rows) -> tuple[Logits, Mask, Mask]:
    """Returns the logits of a tile, the mask of its positives, and that of all candidates."""
    logits, negative = tile_logits(scale, row, column)
    same_group = ~negative_mask(row["groups"], column["groups"])
    positive = without_padding(same_group, row, column)
    return logits, positive, positive | negative


class _SoftmaxTotals(NamedTuple):
    """The totals of a row.

    Sums of logits are sums of the differences to the logit of the row's own pair.
    """

    exponentials: SumExp
    positive_sum: Sum
    positive_count: Sum
    max_positive: Max
    max_negative: Max
    candidate_sum: Sum
    candidate_count: Sum


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _tiled_softmax(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    ids: Ids,
    groups: Groups,
    label_smoothing: float,
    image_weight: float,
    plan: TilePlan,
) -> LossAndMetrics:
    arrays = image_features, text_features, logit_scale, ids, groups
    return _softmax_forward(*arrays, label_smoothing, image_weight, plan)[0]


def _softmax_forward(
    image: Features,
    text: Features,
    scale: Scalar,
    ids: Ids,
    groups: Groups,
    label_smoothing: float,
    image_weight: float,
    plan: TilePlan,
) -> tuple[LossAndMetrics, Any]:
    """Returns the loss with its metrics, and what the backward pass needs."""
    own = scale * positive_cosines(image, text)
    rows, columns = (
        {"features": x, "ids": ids, "groups": groups, "own": own} for x in (image, text)
    )
    directions = reduce_tiles(_softmax_tile, scale, rows, columns, plan)
    # the leading axis of these totals: image to text, text to image
    totals = _SoftmaxTotals(*jax.tree.map(lambda *xs: jnp.stack(xs), *directions))
    top_logit, total = totals.exponentials
    weights = direction_weights(image_weight)
    positive_share = weights * (1 - label_smoothing) / totals.positive_count.value
    smoothing = weights * label_smoothing / totals.candidate_count.value
    loss = weights * (jnp.log(total) + (top_logit - own))
    loss -= positive_share * totals.positive_sum.value
    loss = (loss - smoothing * totals.candidate_sum.value).mean()
    positives, negatives = totals.max_positive.value, totals.max_negative.value
    metrics = accuracies((positives[0], positives[1]), (negatives[0], negatives[1]), scale)
    residuals = {
        "top_logit": top_logit,
        "weight": weights / total,
        "positive_share": positive_share,
        "smoothing": smoothing,
    }
    return (loss, metrics), (image, text, scale, ids, groups, residuals)


def _softmax_tile(scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    """Returns the totals of a tile's rows and columns, in the order of `_SoftmaxTotals`."""
    logits, positive, candidate = _tile_masks(scale, row, column)
    masked_logits = jnp.where(candidate, logits, -jnp.inf)

    def totals(axis: int, own: Float[Array, " n"]) -> Totals:
        top_logit = masked_logits.max(axis=axis, initial=FLOOR)
        total = jnp.exp(masked_logits - jnp.expand_dims(top_logit, axis)).sum(axis=axis)
        differences = logits - jnp.expand_dims(own, axis)

        def sum_and_count(mask: Mask) -> tuple[Sum, Sum]:
            count = mask.sum(axis=axis, dtype=jnp.float32)
            return Sum(jnp.where(mask, differences, 0).sum(axis=axis)), Sum(count)

        return _SoftmaxTotals(
            SumExp(top_logit, total),
            *sum_and_count(positive),
            Max(_largest(logits, positive, axis)),
            Max(_largest(logits, candidate & ~positive, axis)),
            *sum_and_count(candidate),
        )

    return tuple(totals(1, row["own"])), tuple(totals(0, column["own"]))


def _softmax_backward(
    label_smoothing: float, image_weight: float, plan: TilePlan, saved: Any, cotangents: Any
) -> tuple[Array, Array, Array, None, None]:
    image, text, scale, ids, groups, residuals = saved
    rows, columns = (
        {
            "features": x,
            "ids": ids,
            "groups": groups,
            **{name: stacked[i] for name, stacked in residuals.items()},
        }
        for i, x in enumerate((image, text))
    )
    (by_image,), (by_text,) = reduce_tiles(_softmax_gradient_tile, scale, rows, columns, plan)
    factor = cotangents[0] / (2 * len(image))
    gradients = scale_gradients(factor, by_image.value, by_text.value, image, text, scale)
    return *gradients, None, None


def _softmax_gradient_tile(scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    """Returns the gradients by the features: softmax minus target, in both directions."""
    logits, positive, candidate = _tile_masks(scale, row, column)
    gradient = jnp.exp(logits - row["top_logit"][:, None]) * row["weight"][:, None]
    gradient += jnp.exp(logits - column["top_logit"]) * column["weight"]
    gradient -= row["smoothing"][:, None] + column["smoothing"]
    target = row["positive_share"][:, None] + column["positive_share"]
    gradient = jnp.where(candidate, gradient, 0) - jnp.where(positive, target, 0)
    return feature_gradients(gradient, row, column)


_tiled_softmax.defvjp(_softmax_forward, _softmax_backward)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _tiled_sigmoid(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    logit_bias: Scalar,
    ids: Ids,
    groups: Groups,
    plan: TilePlan,
) -> LossAndMetrics:
    arrays = image_features, text_features, logit_scale, logit_bias, ids, groups
    return _sigmoid_forward(*arrays, plan, with_gradients=False)[0]


def _sigmoid_forward(
    image: Features,
    text: Features,
    scale: Scalar,
    bias: Scalar,
    ids: Ids,
    groups: Groups,
    plan: TilePlan,
    with_gradients: bool = True,
) -> tuple[LossAndMetrics, Any]:
    """Returns the loss with its metrics, and its gradients, from one pass over the tiles."""
    rows, columns = ({"features": x, "ids": ids, "groups": groups} for x in (image, text))
    tile = partial(_sigmoid_tile, with_gradients)
    by_row, by_column = reduce_tiles(tile, (scale, bias), rows, columns, plan)
    positives, negatives = ((by_row[i].value, by_column[i].value) for i in (0, 1))
    loss, metrics = by_row[2].value.mean(), accuracies(positives, negatives, scale)
    if not with_gradients:
        return (loss, metrics), None
    gradients = by_row[4].value, by_column[2].value
    scaled = scale_gradients(1 / len(image), *gradients, image, text, scale)
    return (loss, metrics), (*scaled, by_row[3].value.mean())


def _sigmoid_tile(
    with_gradients: bool, shared: tuple[Scalar, Scalar], row: Rows, column: Rows
) -> tuple[Totals, Totals]:
    """Returns the totals of a tile by row and by column.

    By row: the maxima, the loss, the gradients by the bias and by the features. By column: the
    maxima, the gradient by the features. The maxima are those of the positives and of the
    negatives.
    """
    scale, bias = shared
    logits, positive, candidate = _tile_masks(scale, row, column)
    logits += bias
    negated = jnp.where(positive, -logits, logits)  # -label × logit
    losses = jnp.where(candidate, jax.nn.softplus(negated), 0)

    def maxima(axis: int) -> tuple[Max, Max]:
        masks = positive, candidate & ~positive
        positives, negatives = (Max(_largest(logits, mask, axis)) for mask in masks)
        return positives, negatives

    by_row: Totals = (*maxima(1), Sum(losses.sum(axis=1)))
    by_column: Totals = maxima(0)
    if with_gradients:
        gradient = jnp.where(candidate, jax.nn.sigmoid(negated), 0)
        gradient = jnp.where(positive, -gradient, gradient)
        row_total, column_total = feature_gradients(gradient, row, column)
        by_row = (*by_row, Sum(gradient.sum(axis=1)), *row_total)
        by_column = (*by_column, *column_total)
    return by_row, by_column


def _sigmoid_backward(
    plan: TilePlan, gradients: Any, cotangents: Any
) -> tuple[Array, Array, Array, Array, None, None]:
    return *(cotangents[0].astype(x.dtype) * x for x in gradients), None, None


_tiled_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)
