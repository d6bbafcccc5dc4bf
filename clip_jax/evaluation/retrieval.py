"""Retrieval between pictures and texts: recall at k, both ways (section 3.1, table 13)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def recalls(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    query_group: Int[np.ndarray, " q"],
    gallery_group: Int[np.ndarray, " g"],
    ks: tuple[int, ...] = (1, 5, 10),
    rows: int = 1024,
) -> dict[str, float]:
    """The share of queries with an item of their own group among the k nearest of the gallery.

    A query is a hit at k when fewer than k items of other groups come before its first own one;
    an item as near as that one, or not comparable, counts as before it. A query without an own
    item is none. Works through `rows` queries at a time.
    """
    ahead = np.empty(len(query), np.int64)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        similarity = query[part] @ gallery.T
        own = query_group[part, None] == gallery_group[None]
        best = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
        before = (~(similarity < best) & ~own).sum(axis=1)
        ahead[part] = np.where(own.any(axis=1), before, max(ks))
    return {f"r{k}": float((ahead < k).mean()) for k in ks}


def both_ways(
    image_features: Float[np.ndarray, "images d"],
    text_features: Float[np.ndarray, "texts d"],
    image_group: Int[np.ndarray, " images"],
    text_group: Int[np.ndarray, " texts"],
) -> dict[str, float]:
    """`image_to_text/r1` … `text_to_image/r10`; pictures and texts of one group belong together."""
    there = recalls(image_features, text_features, image_group, text_group)
    back = recalls(text_features, image_features, text_group, image_group)
    return {f"image_to_text/{k}": v for k, v in there.items()} | {
        f"text_to_image/{k}": v for k, v in back.items()
    }
