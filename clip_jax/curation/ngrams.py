"""Words and pairs of words of captions, and which of them are frequent (ALIGN's rule)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

from clip_jax.curation import hashing

_PAIR = np.uint64(0x5BD1E995)  # makes the hash of a pair of words differ from that of a word


def hashes(
    texts: Sequence[str | None],
) -> tuple[UInt32[np.ndarray, " n_plus_1"], UInt64[np.ndarray, " ngrams"]]:
    """Returns the hashes of the words and of the pairs of neighbouring words of each text.

    Words are what stands between blanks, in lower case.

    Returns:
      starts, uint32 [n + 1], and hashes, uint64 [ngrams]: first the words of a text, then its
      pairs. None has no words.
    """
    known: dict[str, int] = {}
    parts: list[np.ndarray] = []
    starts = np.zeros(len(texts) + 1, np.uint32)
    for i, text in enumerate(texts):
        words = [] if text is None else text.lower().split()
        for word in words:
            if word not in known:
                known[word] = hashing.text_hash(word)
        single = np.array([known[word] for word in words], np.uint64)
        pairs = hashing.combine(_PAIR, single[:-1], single[1:]) if len(words) > 1 else single[:0]
        parts += [single, pairs]
        starts[i + 1] = starts[i] + len(single) + len(pairs)
    return starts, np.concatenate([np.zeros(0, np.uint64), *parts])


def counted(
    values: UInt64[np.ndarray, " n"], counts: Int64[np.ndarray, " n"]
) -> tuple[UInt64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    """Returns the distinct values, rising, and the sum of the counts of each."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return distinct, np.bincount(inverse, counts, len(distinct)).astype(np.int64)


def least_count(histogram: dict[int, int], most: int) -> int:
    """Returns the least count of a frequent word or pair of words.

    Args:
      histogram: how many distinct ones occur each number of times.
      most: the number of distinct ones that are frequent. Where those that occur equally often do
        not all fit, none of them is frequent.
    """
    total = 0
    for count in sorted(histogram, reverse=True):
        total += histogram[count]
        if total > most:
            return count + 1
    return 1


def has_rare(
    starts: UInt32[np.ndarray, " n_plus_1"],
    values: UInt64[np.ndarray, " ngrams"],
    frequent: UInt64[np.ndarray, " frequent"],
) -> Bool[np.ndarray, " n"]:
    """Returns whether each text has a word or a pair of words that is not frequent.

    Args:
      starts, values: as `hashes` returns them.
      frequent: the hashes of the frequent ones, rising.
    """
    result = np.zeros(len(starts) - 1, bool)
    if not len(values):
        return result
    places = np.searchsorted(frequent, values)
    is_rare = np.ones(len(values), bool)
    inside = places < len(frequent)
    is_rare[inside] = frequent[places[inside]] != values[inside]
    before = np.concatenate([[0], np.cumsum(is_rare)])
    ends = starts.astype(np.int64)
    return before[ends[1:]] > before[ends[:-1]]
