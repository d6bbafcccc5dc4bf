"""The N×N similarities of a global batch and the loss on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric cross-entropy over the pairings of the whole batch (section 2.3, figure 3).

    Row i of both belongs together. Written for one device; under jit the compiler gathers what a
    shard of rows needs. One matrix of logits serves both directions.

    Returns:
      The mean of both directions, and the share of rows whose own partner is the likeliest.
    """
    logits = logit_scale * jnp.einsum(
        "id,jd->ij", image_features, text_features, precision="highest"
    )
    own = logit_scale * jnp.sum(image_features * text_features, axis=-1)
    image_to_text = jax.nn.logsumexp(logits, axis=1) - own
    text_to_image = jax.nn.logsumexp(logits, axis=0) - own
    return (image_to_text.mean() + text_to_image.mean()) / 2, _accuracy(logits)


def sigmoid_loss(
    image_features: Float[Array, "n d"],
    text_features: Float[Array, "n d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Whether each of the batch's pairings belongs together, asked one by one (SigLIP).

    Source: Zhai et al. 2023, algorithm 1. Row i of both belongs together.

    Returns:
      The sum over an image's texts, averaged over images; the share of rows whose own partner is
      the likeliest.
    """
    logits = logit_bias + logit_scale * jnp.einsum(
        "id,jd->ij", image_features, text_features, precision="highest"
    )
    rows = jnp.arange(logits.shape[0])
    signs = 2 * (rows[:, None] == rows) - 1
    loss = -jax.nn.log_sigmoid(signs * logits).sum(axis=1).mean()
    return loss, _accuracy(logits)


def _accuracy(logits: Float[Array, "n n"]) -> dict[str, Float[Array, ""]]:
    rows = jnp.arange(logits.shape[0])
    return {
        "image_to_text_accuracy": jnp.mean(jnp.argmax(logits, axis=1) == rows),
        "text_to_image_accuracy": jnp.mean(jnp.argmax(logits, axis=0) == rows),
    }
