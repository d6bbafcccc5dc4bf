"""The losses by their definition: all N×N logits at once, partitioned by XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clip_jax.losses.contrastive.masks import FLOOR, accuracies, negatives, own_cosines, product

Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


def softmax(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    ids: Integer[Array, "n words"],
    label_smoothing: float,
) -> Loss:
    """Symmetric cross-entropy; one matrix of logits serves both directions."""
    image_features, text_features = _fp32(image_features, text_features)
    counted = negatives(ids, ids)
    logits = _rows(logit_scale, ids) * product("id,jd->ij", image_features, text_features)
    own = logit_scale * own_cosines(image_features, text_features)
    directions = [_cross_entropy(logits, counted, own, axis, label_smoothing) for axis in (1, 0)]
    (image_to_text, text_to_image), most = zip(*directions, strict=True)
    loss = (image_to_text.mean() + text_to_image.mean()) / 2
    return loss, accuracies(own, most, logit_scale)


def _cross_entropy(
    logits: Float[Array, "n n"],
    counted: Bool[Array, "n n"],
    own: Float[Array, " n"],
    axis: int,
    label_smoothing: float,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """That of every row's own logit among all; and the greatest of the negatives.

    As softplus(log-sum-exp of the negatives - own), which is exact where it is small.
    """
    logits = jnp.where(counted, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=axis, initial=FLOOR))
    total = jnp.sum(jnp.exp(logits - jnp.expand_dims(top, axis)), axis=axis)
    loss = jax.nn.softplus(jnp.log(jnp.where(total > 0, total, 1)) + (top - own))
    if label_smoothing:
        others = jnp.sum(jnp.where(counted, logits, 0), axis=axis)
        candidates = 1 + jnp.sum(counted, axis=axis)
        loss += label_smoothing * (own - (own + others) / candidates)
    return loss, top


def sigmoid(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    ids: Integer[Array, "n words"],
) -> Loss:
    """The sum of -log σ(±logit) over all pairings that count, by rows."""
    image_features, text_features = _fp32(image_features, text_features)
    counted = negatives(ids, ids)
    logits = _rows(logit_scale, ids) * product("id,jd->ij", image_features, text_features)
    logits += _rows(logit_bias, ids)
    own = logit_bias + logit_scale * own_cosines(image_features, text_features)
    negative = jnp.where(counted, jax.nn.softplus(logits), 0).sum(axis=1)
    masked = jax.lax.stop_gradient(jnp.where(counted, logits, FLOOR))
    most = masked.max(axis=1), masked.max(axis=0)
    return (jax.nn.softplus(-own) + negative).mean(), accuracies(own, most, logit_scale)


def _fp32(*features: Float[Array, "n d"]) -> list[Float[Array, "n d"]]:
    """So that what a gradient is the sum of is rounded to the features' dtype once."""
    return [x.astype(jnp.float32) for x in features]


def _rows(x: Float[Array, ""], ids: Integer[Array, "n words"]) -> Float[Array, "n 1"]:
    """A scalar for every row, so that its gradient is summed by rows first.

    XLA would merge the two sums, and n² terms one after the other lose digits.
    """
    return jax.lax.optimization_barrier(jnp.full((len(ids), 1), x))
