"""The losses from tiles of logits, which are made a second time for the gradients.

A logit is needed only for what it adds to its row and to its column, so that no device holds more
than a tile of them. Own logits stay outside of the tiles: they are sums along a row of features.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clip_jax.losses.contrastive.dense import Loss
from clip_jax.losses.contrastive.masks import FLOOR, accuracies, negatives, own_cosines, product
from clip_jax.losses.contrastive.tiling import Max, Plan, Rows, Sum, SumExp, Totals, sweep

Features = Float[Array, "n d"]
Scalar = Float[Array, ""]
Ids = Integer[Array, "n words"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def softmax(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    ids: Ids,
    label_smoothing: float,
    plan: Plan,
) -> Loss:
    """Symmetric cross-entropy, as `dense.softmax`."""
    return _softmax(image_features, text_features, logit_scale, ids, label_smoothing, plan)[0]


def _softmax(
    image: Features, text: Features, scale: Scalar, ids: Ids, smoothing: float, plan: Plan
) -> tuple[Loss, Any]:
    rows, columns = ({"features": x, "ids": ids} for x in (image, text))
    sides = sweep(partial(_softmax_sums, smoothing > 0), scale, rows, columns, plan)
    own = scale * own_cosines(image, text)
    both = jax.tree.map(lambda *sides: jnp.stack(sides), *sides)
    (top, total), *more = both
    # the log-sum-exp of the negatives, less the own logit
    behind = jnp.log(total) + (top - own)
    share = jax.nn.sigmoid(behind)
    loss, to_own = jax.nn.softplus(behind).sum(0), -share.sum(0)
    # a row without negatives has a total of 0; any other's is at least 1
    kept = {"top": top, "weight": share / jnp.maximum(total, 1)}
    if smoothing:
        others, candidates = more[0].value, 1 + more[1].value
        kept["spread"] = smoothing / candidates
        loss += (smoothing * own - kept["spread"] * (own + others)).sum(0)
        to_own += (smoothing - kept["spread"]).sum(0)
    metrics = accuracies(own, (top[0], top[1]), scale)
    return (loss.mean() / 2, metrics), (image, text, scale, ids, to_own, kept)


def _softmax_sums(smoothed: bool, scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    logits, counted = _logits(scale, row, column)
    masked = jnp.where(counted, logits, -jnp.inf)

    def along(axis: int) -> Totals:
        top = masked.max(axis=axis, initial=FLOOR)
        total = jnp.exp(masked - jnp.expand_dims(top, axis)).sum(axis=axis)
        if not smoothed:
            return (SumExp(top, total),)
        others = jnp.where(counted, logits, 0).sum(axis=axis)
        return SumExp(top, total), Sum(others), Sum(counted.sum(axis=axis, dtype=jnp.float32))

    return along(1), along(0)


def _softmax_gradients(
    smoothing: float, plan: Plan, kept: Any, cotangents: Any
) -> tuple[Array, Array, Array, None]:
    image, text, scale, ids, to_own, sides = kept
    rows, columns = (
        {"features": x, "ids": ids, **{name: of_both[i] for name, of_both in sides.items()}}
        for i, x in enumerate((image, text))
    )
    (to_image,), (to_text,) = sweep(_softmax_slopes, scale, rows, columns, plan)
    slopes = _with_own(to_image.value, to_text.value, to_own, image, text)
    return *_scaled(cotangents[0] / (2 * len(image)), *slopes, image, text, scale), None


def _softmax_slopes(scale: Scalar, row: Rows, column: Rows) -> tuple[Totals, Totals]:
    logits, counted = _logits(scale, row, column)
    slopes = jnp.exp(logits - row["top"][:, None]) * row["weight"][:, None]
    slopes += jnp.exp(logits - column["top"]) * column["weight"]
    if "spread" in row:
        slopes -= row["spread"][:, None] + column["spread"]
    return _to_features(jnp.where(counted, slopes, 0), row, column)


softmax.defvjp(_softmax, _softmax_gradients)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sigmoid(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar,
    logit_bias: Scalar,
    ids: Ids,
    plan: Plan,
) -> Loss:
    """The sum of -log σ(±logit) over all pairings that count, as `dense.sigmoid`."""
    features = image_features, text_features
    return _sigmoid(*features, logit_scale, logit_bias, ids, plan, with_gradients=False)[0]


def _sigmoid(
    image: Features,
    text: Features,
    scale: Scalar,
    bias: Scalar,
    ids: Ids,
    plan: Plan,
    with_gradients: bool = True,
) -> tuple[Loss, Any]:
    """A sum over logits needs no second look at them: its gradients are made along with it."""
    rows, columns = ({"features": x, "ids": ids} for x in (image, text))
    tile = partial(_sigmoid_sums, with_gradients)
    by_row, by_column = sweep(tile, (scale, bias), rows, columns, plan)
    own = bias + scale * own_cosines(image, text)
    most = by_row[0].value, by_column[0].value
    loss = (by_row[1].value + jax.nn.softplus(-own)).mean(), accuracies(own, most, scale)
    if not with_gradients:
        return loss, None
    to_own = -jax.nn.sigmoid(-own)
    slopes = _with_own(by_row[3].value, by_column[1].value, to_own, image, text)
    to_bias = (by_row[2].value + to_own).mean()
    return loss, (*_scaled(1 / len(image), *slopes, image, text, scale), to_bias)


def _sigmoid_sums(
    with_gradients: bool, shared: tuple[Scalar, Scalar], row: Rows, column: Rows
) -> tuple[Totals, Totals]:
    scale, bias = shared
    logits, counted = _logits(scale, row, column)
    logits = jnp.where(counted, logits + bias, -jnp.inf)
    by_row: Totals = Max(logits.max(axis=1, initial=FLOOR)), Sum(jax.nn.softplus(logits).sum(1))
    by_column: Totals = (Max(logits.max(axis=0, initial=FLOOR)),)
    if with_gradients:
        slopes = jax.nn.sigmoid(logits)
        to_row, to_column = _to_features(slopes, row, column)
        by_row, by_column = (*by_row, Sum(slopes.sum(axis=1)), *to_row), (*by_column, *to_column)
    return by_row, by_column


def _sigmoid_gradients(
    plan: Plan, kept: Any, cotangents: Any
) -> tuple[Array, Array, Array, Array, None]:
    return *(cotangents[0].astype(x.dtype) * x for x in kept), None


sigmoid.defvjp(_sigmoid, _sigmoid_gradients)


def _logits(
    scale: Scalar, row: Rows, column: Rows
) -> tuple[Float[Array, "r c"], Bool[Array, "r c"]]:
    """A tile's logits, and which of them count."""
    counted = negatives(row["ids"], column["ids"])
    if "valid" in row:
        counted &= row["valid"][:, None]
    if "valid" in column:
        counted &= column["valid"]
    return scale * product("id,jd->ij", row["features"], column["features"]), counted


def _to_features(
    slopes: Float[Array, "r c"], row: Rows, column: Rows
) -> tuple[tuple[Sum], tuple[Sum]]:
    """From the loss's slopes along a tile's cosines to those along its features."""
    to_row = product("ij,jd->id", slopes, column["features"].astype(jnp.float32))
    to_column = product("ij,id->jd", slopes, row["features"].astype(jnp.float32))
    return (Sum(to_row),), (Sum(to_column),)


def _with_own(
    to_image: Features, to_text: Features, to_own: Float[Array, " n"], image: Array, text: Array
) -> tuple[Features, Features]:
    return to_image + to_own[:, None] * text, to_text + to_own[:, None] * image


def _scaled(
    factor: Scalar | float,
    to_image: Features,
    to_text: Features,
    image: Array,
    text: Array,
    scale: Scalar,
) -> tuple[Array, Array, Array]:
    """Gradients of both features and of the scale: a logit is a cosine times the scale."""
    to_scale = factor * jnp.sum(image * to_image)
    both = (factor * scale * to_image).astype(image.dtype), (factor * scale * to_text)
    return both[0], both[1].astype(text.dtype), to_scale
