"""Which pairings of a batch count, and what is said of a row's own."""

from __future__ import annotations

from functools import reduce
from operator import or_

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt

FLOOR = float(jnp.finfo(jnp.float32).min)  # the maximum of nothing: -inf less itself is no number

_TIE = 4e-6  # a lead in cosine that is but rounding


def caption_ids(tokens: Int[Array, "n context"]) -> UInt[Array, "n 2"]:
    """A 64-bit hash of every row as two words: equal captions have equal ids.

    Two that differ share theirs with a chance of about 2^-64. Every token is mixed with its
    position by the finalizer of MurmurHash3 (Appleby 2011); a row's hash is the sum.
    """
    seeds = jnp.array([0x9E3779B9, 0x7F4A7C15], jnp.uint32)
    position = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32)
    place = _mixed(position[:, None] * seeds)
    token = _mixed(tokens.astype(jnp.uint32)[:, :, None] + seeds)
    return jnp.sum(_mixed(token ^ place), axis=1, dtype=jnp.uint32)


def _mixed(x: UInt[Array, "*shape"]) -> UInt[Array, "*shape"]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def negatives(
    rows: Integer[Array, "r words"], columns: Integer[Array, "c words"]
) -> Bool[Array, "r c"]:
    """Which pairings are of two ids that differ."""
    words = zip(rows.T, columns.T, strict=True)
    return reduce(or_, (row[:, None] != column for row, column in words))


def product(spec: str, a: Float[Array, "_ _"], b: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
    """A sum of products in fp32, of factors that may have 16 bits."""
    return jnp.einsum(spec, a, b, precision="highest", preferred_element_type=jnp.float32)


def own_cosines(
    image_features: Float[Array, "n d"], text_features: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """Of every row with its own partner."""
    return jnp.sum(image_features.astype(jnp.float32) * text_features, axis=-1)


def accuracies(
    own: Float[Array, " n"],
    most: tuple[Float[Array, " n"], Float[Array, " n"]],
    logit_scale: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """The shares of rows whose own logit is above `most`, the greatest of its negatives.

    A tie is not right: a model that says the same of everything scores nothing.
    """
    names = ("image_to_text_accuracy", "text_to_image_accuracy")
    lead = _TIE * logit_scale
    return {
        name: jnp.mean(own - other > lead, dtype=jnp.float32)
        for name, other in zip(names, most, strict=True)
    }
