"""Balance: frequent queries give up pairs, rare ones keep all (Xu et al. 2023, section 3.3).

A query with `count` pairs in the pool is drawn for each of them with p = t / max(count, t), and a
pair is kept if any of its queries is drawn. A draw is a number u in [0, 1) that depends only on the
seed, the pair's content and the query's text. So u < p means u · count < t, and a pair has a
threshold of its own, the least u · count of its queries: it is kept when this is less than t. Every
value of t, the number of pairs that it keeps, and the value that keeps a wanted number follow from
these thresholds without new draws.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt32, UInt64

from clip_jax.curation.hashing import combine
from clip_jax.errors import UserError

SCALE = 32  # bits of a draw: thresholds are in units of 2**-32 pairs
NEVER = np.uint64((1 << 64) - 1)  # the threshold of a pair without a query
MAX_COUNT = (1 << 32) - 1
LIMIT = 20_000  # t of WebImageText and MetaCLIP-400M


def draws(
    keys: UInt64[np.ndarray, " n"], queries: UInt64[np.ndarray, " n"], seed: int
) -> UInt64[np.ndarray, " n"]:
    """Returns a random number below 2**32 for each pair and query.

    Args:
      keys: the hash of the content of each pair.
      queries: the hash of the text of a query of each.
      seed: the seed.
    """
    return combine(np.uint64(seed % (1 << 64)), queries, keys) >> np.uint64(64 - SCALE)


def lengths_of(starts: UInt32[np.ndarray, " n_plus_1"]) -> Int64[np.ndarray, " n"]:
    """Returns the number of queries of each pair."""
    wide: np.ndarray = starts.astype(np.int64)
    return wide[1:] - wide[:-1]


def thresholds(
    keys: UInt64[np.ndarray, " n"],
    starts: UInt32[np.ndarray, " n_plus_1"],
    matches: UInt32[np.ndarray, " matches"],
    query_hashes: UInt64[np.ndarray, " queries"],
    counts: Int64[np.ndarray, " queries"],
    seed: int,
) -> UInt64[np.ndarray, " n"]:
    """Returns the threshold of each pair, in units of 2**-32: it is kept when less than t.

    Args:
      keys: the hash of the content of each pair.
      starts, matches: the queries of the pairs, see `matching.Matcher.find`.
      query_hashes: the hash of the text of each query.
      counts: the number of pairs of each query in the pool.
      seed: the seed of the draws.
    """
    lengths = lengths_of(starts)
    own = np.repeat(keys, lengths)
    drawn = draws(own, query_hashes[matches], seed) if len(matches) else np.zeros(0, np.uint64)
    products = drawn * counts[matches].astype(np.uint64)  # exact: both factors are below 2**32
    result = np.full(len(keys), NEVER)
    has_any = lengths > 0
    if has_any.any():
        result[has_any] = np.minimum.reduceat(products, starts[:-1][has_any].astype(np.int64))
    return result


def is_kept(
    pair_thresholds: UInt64[np.ndarray, " n"], limit: UInt64[np.ndarray, " n"] | int
) -> Bool[np.ndarray, " n"]:
    """Returns whether each pair is kept at t = `limit`, of all pairs or of each."""
    scaled = np.asarray(limit, np.uint64) << np.uint64(SCALE)
    return (pair_thresholds < scaled) & (pair_thresholds != NEVER)


def tail_share(counts: Int[np.ndarray, " queries"], limit: int) -> float:
    """Returns the share of all matches that belong to queries with fewer than `limit` pairs."""
    total = int(counts.sum())
    return int(counts[counts < limit].sum()) / total if total else 0.0


def limit_for_tail(counts: Int[np.ndarray, " queries"], share: float) -> int:
    """Returns the largest t for which the tail has at most a share of all matches.

    MetaCLIP's 20,000 for 1.6 billion pairs and 170,000 for a larger pool leave 6 % in the tail.

    Args:
      counts: the number of pairs of each query.
      share: the share, between 0 and 1.

    Raises:
      UserError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"the tail's share is between 0 and 1, not {share:g}")
    rising = np.sort(counts[counts > 0].astype(np.int64))
    if not len(rising):
        return 1
    below = np.cumsum(rising) <= share * float(rising.sum())
    return int(rising[np.count_nonzero(below)]) if not below.all() else int(rising[-1]) + 1
