"""Rules that compare a pair with all others: on the rows of one partition of hashes.

The rows of a partition come from any number of chunks; what is found is returned by chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from clip_jax.curation.duplicates import perceptual
from clip_jax.curation.engine.job import Id, Marks, Rows


class _Joined:
    """The rows of a partition as arrays, in the order of the pool."""

    def __init__(self, parts: Iterable[Rows]) -> None:
        self.parts = sorted(parts, key=lambda rows: rows.id)
        self.key: UInt64[np.ndarray, " n"] = np.concatenate([p.key for p in self.parts])
        self.other: UInt64[np.ndarray, " n"] = np.concatenate([p.other for p in self.parts])

    def marks(self, reason: str, chosen: Bool[np.ndarray, " n"]) -> Iterator[tuple[Id, Marks]]:
        """Yields the places of the chosen rows by chunk."""
        start = 0
        for part in self.parts:
            own = part.place[chosen[start : start + len(part.place)]]
            start += len(part.place)
            if len(own):
                yield part.id, (reason, own)


def with_many_others(rows: Iterable[Rows], reason: str, most: int) -> Iterator[tuple[Id, Marks]]:
    """Yields the pairs whose key has more than `most` distinct values of the other hash.

    So images with many texts are found, and texts with many images.
    """
    joined = _Joined(rows)
    _, key = np.unique(joined.key, return_inverse=True)
    _, other = np.unique(joined.other, return_inverse=True)
    distinct = np.unique(np.stack([key, other]), axis=1)
    counts: Int64[np.ndarray, " keys"] = np.bincount(distinct[0], minlength=int(key.max()) + 1)
    yield from joined.marks(reason, counts[key] > most)


def repeated(rows: Iterable[Rows], reason: str) -> Iterator[tuple[Id, Marks]]:
    """Yields the pairs whose key an earlier pair has."""
    joined = _Joined(rows)
    is_first = np.zeros(len(joined.key), bool)
    is_first[np.unique(joined.key, return_index=True)[1]] = True
    yield from joined.marks(reason, ~is_first)


def near(rows: Iterable[Rows], reason: str, radius: int) -> Iterator[tuple[Id, Marks]]:
    """Yields the pairs whose perceptual hash is near that of an earlier pair with the same key."""
    joined = _Joined(rows)
    place = np.arange(len(joined.key))
    chosen = perceptual.near_within(joined.key, joined.other, place, radius)
    yield from joined.marks(reason, chosen)
