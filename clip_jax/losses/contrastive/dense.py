"""Contrastive losses by their definition: all N×N logits at once, partitioned by XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clip_jax.losses.contrastive.masks import (
    FLOOR,
    accuracies,
    einsum_fp32,
    negative_mask,
    positive_cosines,
)
from clip_jax.losses.objective import Metrics

LossAndMetrics = tuple[Float[Array, ""], Metrics]


def softmax(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    ids: Integer[Array, "n words"],
    label_smoothing: float,
    image_weight: float,
) -> LossAndMetrics:
    """Computes the cross-entropy of both directions; one matrix of logits serves both."""
    image_features, text_features = to_fp32(image_features, text_features)
    mask = negative_mask(ids, ids)
    scale = per_row(logit_scale, ids)
    logits = scale * einsum_fp32("id,jd->ij", image_features, text_features)
    positives = logit_scale * positive_cosines(image_features, text_features)
    directions = [_cross_entropy(logits, mask, positives, axis, label_smoothing) for axis in (1, 0)]
    (image_to_text, text_to_image), max_negatives = zip(*directions, strict=True)
    loss = mean_of_directions(image_to_text, text_to_image, image_weight)
    return loss, accuracies((positives,) * 2, max_negatives, logit_scale)


def _cross_entropy(
    logits: Float[Array, "n n"],
    mask: Bool[Array, "n n"],
    positives: Float[Array, " n"],
    axis: int,
    label_smoothing: float,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Returns the cross-entropy of each row along an axis, and the largest logit of its negatives.

    Computed as softplus(log-sum-exp of the negatives - positive), which stays exact for small
    losses.
    """
    logits = jnp.where(mask, logits, -jnp.inf)
    max_negative = jax.lax.stop_gradient(jnp.max(logits, axis=axis, initial=FLOOR))
    total = jnp.sum(jnp.exp(logits - jnp.expand_dims(max_negative, axis)), axis=axis)
    loss = jax.nn.softplus(jnp.log(jnp.where(total > 0, total, 1)) + (max_negative - positives))
    if label_smoothing:
        negatives_sum = jnp.sum(jnp.where(mask, logits, 0), axis=axis)
        candidates = 1 + jnp.sum(mask, axis=axis)
        loss += label_smoothing * (positives - (positives + negatives_sum) / candidates)
    return loss, max_negative


def sigmoid(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    ids: Integer[Array, "n words"],
) -> LossAndMetrics:
    """Computes the sum of -log σ(±logit) over the positives and the unmasked negatives of a row.

    The sum is averaged over the rows.
    """
    image_features, text_features = to_fp32(image_features, text_features)
    mask = negative_mask(ids, ids)
    scale = per_row(logit_scale, ids)
    logits = scale * einsum_fp32("id,jd->ij", image_features, text_features)
    logits += per_row(logit_bias, ids)
    positives = logit_bias + logit_scale * positive_cosines(image_features, text_features)
    negative_loss = jnp.where(mask, jax.nn.softplus(logits), 0).sum(axis=1)
    masked_logits = jax.lax.stop_gradient(jnp.where(mask, logits, FLOOR))
    max_negatives = masked_logits.max(axis=1), masked_logits.max(axis=0)
    loss = (jax.nn.softplus(-positives) + negative_loss).mean()
    return loss, accuracies((positives,) * 2, max_negatives, logit_scale)


def mean_of_directions(
    image_to_text: Float[Array, " n"], text_to_image: Float[Array, " n"], image_weight: float
) -> Float[Array, ""]:
    """Returns the mean over rows and directions, the first of which has the weight given."""
    if image_weight == 0.5:
        return (image_to_text.mean() + text_to_image.mean()) / 2
    return image_weight * image_to_text.mean() + (1 - image_weight) * text_to_image.mean()


def to_fp32(*features: Float[Array, "n d"]) -> list[Float[Array, "n d"]]:
    """Casts features to fp32, so that their gradients are rounded to their dtype only once."""
    return [x.astype(jnp.float32) for x in features]


def per_row(x: Float[Array, ""], ids: Integer[Array, "n words"]) -> Float[Array, "n 1"]:
    """Repeats a scalar for each row, so that its gradient is summed within rows first.

    The barrier stops XLA from merging the two sums: one sum of n² terms loses digits.
    """
    return jax.lax.optimization_barrier(jnp.full((len(ids), 1), x))
