"""Cross-entropy over a vocabulary, some rows of the batch at a time.

The logits of 4,096 captions of 77 tokens over 49,408 words take 58 GiB. Here only those of a few
rows exist at once; the backward pass computes them again.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.distributed import sharding
from clip_jax.models.words import word_logits

MAX_BYTES = 64 << 20  # of the float32 logits that exist at once on a device


def token_losses(
    hidden: Float[Array, "n tokens width"],
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"] | None,
    targets: Int[Array, "n tokens choices"],
    shares: Float[Array, "n tokens choices"],
    *,
    label_smoothing: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Float[Array, "n tokens"]:
    """Returns the cross-entropy of each token with a distribution over some words, float32.

    Logits are hidden · kernel + bias; the product has the dtype of `hidden`, sums are float32.

    Args:
      hidden: the features from which words are predicted.
      kernel, bias: the output layer.
      targets: the ids of the words that are right.
      shares: the probability of each of them; they sum to 1.
      label_smoothing: the share of the target that is spread over the whole vocabulary.
      max_bytes: the size of the logits that exist at once on a device. At least one row is computed
        at a time.
    """
    parts = _parts(hidden, kernel.shape[1], max_bytes)
    compute = partial(_losses, kernel, bias, label_smoothing)
    if parts == 1:
        return compute((hidden, targets, shares))
    pieces = sharding.split_chunks((hidden, targets, shares), parts)
    losses: Array = sharding.merge_chunks(jax.lax.map(jax.checkpoint(compute), pieces))
    return losses


def _parts(hidden: Float[Array, "n tokens width"], vocabulary: int, max_bytes: int) -> int:
    """Returns the least number of equal parts of each device's rows that are small enough."""
    rows = len(hidden) // sharding.row_shards()
    row_bytes = hidden.shape[1] * vocabulary * 4
    fits = (p for p in range(1, rows) if rows % p == 0 and rows // p * row_bytes <= max_bytes)
    return next(fits, max(rows, 1))


def _losses(
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"] | None,
    label_smoothing: float,
    rows: tuple[
        Float[Array, "n tokens width"],
        Int[Array, "n tokens choices"],
        Float[Array, "n tokens choices"],
    ],
) -> Float[Array, "n tokens"]:
    hidden, targets, shares = rows
    logits = word_logits(hidden, kernel, bias)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.sum(shares * jnp.take_along_axis(logits, targets, axis=-1), axis=-1)
    if label_smoothing:
        mean = jnp.mean(logits, axis=-1)
        chosen = (1 - label_smoothing) * chosen + label_smoothing * mean
    return normalizer - chosen
