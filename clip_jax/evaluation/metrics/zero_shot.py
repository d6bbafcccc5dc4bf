"""Zero-shot classification: the nearest label's text (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.evaluation.metrics import scores


def ensemble(
    features: Float[np.ndarray, "texts embed_dim"], counts: int | Sequence[int]
) -> Float[np.ndarray, "labels embed_dim"]:
    """Returns the unit-norm mean of the features of each label's texts.

    Args:
      features: the features of the texts; those of one label are adjacent.
      counts: the number of texts of each label, or of every label.
    """
    if isinstance(counts, int):
        counts = [counts] * (len(features) // counts)
    if len(set(counts)) == 1:
        mean = features.reshape(-1, counts[0], features.shape[-1]).mean(axis=1)
    else:
        mean = np.stack([part.mean(axis=0) for part in np.split(features, np.cumsum(counts)[:-1])])
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def top_k(
    logits: Float[np.ndarray, "n classes"],
    target: Int[np.ndarray, " n"],
    ks: tuple[int, ...] = (1, 5),
) -> dict[str, float]:
    """Returns the share of rows whose target is among the k likeliest classes, for each k.

    Ties and NaN count against the model.

    Returns:
      The share by name, such as `top5`.
    """
    rank = scores.ranks(logits, target)
    return {f"top{k}": float((rank < k).mean()) for k in ks}


def likeliest(
    logits: Float[np.ndarray, " classes"], k: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Returns the k likeliest classes and their probabilities, best first."""
    shifted = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")[:k]
    return order, (shifted / shifted.sum())[order]
