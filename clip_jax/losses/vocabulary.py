"""Cross-entropy over a vocabulary, some rows of the batch at a time.

The logits of 4,096 captions of 77 tokens over 49,408 words take 58 GiB. Here only those of a few
rows exist at once; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
    compute = partial(_losses, kernel, bias, label_smoothing)
    losses: Array = _in_parts(compute, (hidden, targets, shares), kernel.shape[1], max_bytes)
    return losses


def losses_and_hits(
    hidden: Float[Array, "n tokens width"],
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"],
    targets: Int[Array, "n tokens"],
    *,
    max_bytes: int = MAX_BYTES,
) -> tuple[Float[Array, "n tokens"], Bool[Array, "n tokens"]]:
    """Returns the cross-entropy of each token with one word, and whether that word is likeliest.

    The arguments are those of `token_losses`.
    """

    def compute(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = word_logits(rows[0], kernel, bias)
        chosen = jnp.take_along_axis(logits, rows[1][..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, chosen >= jnp.max(logits, axis=-1)

    losses, hits = _in_parts(compute, (hidden, targets), kernel.shape[1], max_bytes)
    return losses, hits


def _in_parts(
    compute: Callable[[Any], Any], rows: tuple[Array, ...], vocabulary: int, max_bytes: int
) -> Any:
    """Applies a function to the rows of a batch, few enough of them at a time.

    Args:
      compute: maps rows to results with the same leading axis.
      rows: the features [n, tokens, width], and more arrays [n, …].
      vocabulary: the number of words, each of which has a logit for each token.
      max_bytes: as for `token_losses`.
    """
    parts = _parts(rows[0], vocabulary, max_bytes)
    if parts == 1:
        return compute(rows)
    pieces = sharding.split_chunks(rows, parts)
    return sharding.merge_chunks(jax.lax.map(jax.checkpoint(compute), pieces))


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
