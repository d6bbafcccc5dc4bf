"""Negatives, positives and accuracies, for all layouts of the contrastive loss."""

from __future__ import annotations

from functools import reduce
from operator import or_

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt

from clip_jax.losses.objective import Metrics

# The maximum over no elements. It is finite because -inf - (-inf) is NaN.
FLOOR = float(jnp.finfo(jnp.float32).min)

_TIE = 4e-6  # differences of cosines up to this are rounding errors


def caption_ids(tokens: Int[Array, "n context"]) -> UInt[Array, "n 2"]:
    """Returns a 64-bit hash of each row, as two words: equal captions have equal ids.

    Two different captions have equal ids with a probability of about 2^-64. Each token is mixed
    with its position by the finalizer of MurmurHash3 (Appleby 2011); the hash of a row is the sum.
    """
    seeds = jnp.array([0x9E3779B9, 0x7F4A7C15], jnp.uint32)
    position = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32)
    position_hash = _murmur_finalizer(position[:, None] * seeds)
    token_hash = _murmur_finalizer(tokens.astype(jnp.uint32)[:, :, None] + seeds)
    return jnp.sum(_murmur_finalizer(token_hash ^ position_hash), axis=1, dtype=jnp.uint32)


def _murmur_finalizer(x: UInt[Array, "*shape"]) -> UInt[Array, "*shape"]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def negative_mask(
    row_ids: Integer[Array, "r words"], column_ids: Integer[Array, "c words"]
) -> Bool[Array, "r c"]:
    """Returns a mask that is True where the ids of a row and a column differ."""
    words = zip(row_ids.T, column_ids.T, strict=True)
    return reduce(or_, (row[:, None] != column for row, column in words))


def einsum_fp32(spec: str, a: Float[Array, "_ _"], b: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
    """Computes an einsum with fp32 sums; its operands may have 16 bits."""
    return jnp.einsum(spec, a, b, precision="highest", preferred_element_type=jnp.float32)


def positive_cosines(
    image_features: Float[Array, "n d"], text_features: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """Returns the cosine of each positive pair, in fp32."""
    return jnp.sum(image_features.astype(jnp.float32) * text_features, axis=-1)


def direction_weights(image_weight: float) -> float | Float[Array, "2 1"]:
    """Returns the factors on the losses image to text and text to image, whose mean is the loss.

    Args:
      image_weight: the weight of the first direction; that of the second is the rest to 1.
    """
    if image_weight == 0.5:
        return 1.0
    return jnp.array([[2 * image_weight], [2 - 2 * image_weight]], jnp.float32)


def accuracies(
    positives: tuple[Float[Array, " n"], Float[Array, " n"]],
    max_negatives: tuple[Float[Array, " n"], Float[Array, " n"]],
    logit_scale: Float[Array, ""],
) -> Metrics:
    """Returns the shares of rows whose positive has a larger logit than all negatives.

    A tie counts as wrong, so that constant features score 0.

    Args:
      positives: the logit of each row's positive, the largest if it has several, image to text and
        text to image.
      max_negatives: the largest logit of each row's negatives, image to text and text to image.
      logit_scale: the factor on the cosines.
    """
    names = ("image_to_text_accuracy", "text_to_image_accuracy")
    margin = _TIE * logit_scale
    return {
        name: jnp.mean(positive - max_negative > margin, dtype=jnp.float32)
        for name, positive, max_negative in zip(names, positives, max_negatives, strict=True)
    }
