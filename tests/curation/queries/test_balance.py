"""The balance: against a reference in plain Python, and its properties."""

import hashlib

import numpy as np
import pytest

from clip_jax.curation.hashing import text_hashes
from clip_jax.curation.queries import balance
from clip_jax.errors import UserError

N, QUERIES, SEED = 100_000, 300, 7
MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64 in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def reference(keys, matches, hashes, limit) -> list[bool]:
    """MetaCLIP's balance: a pair is kept if one of its queries is drawn with p = t / max(n, t)."""
    counts: dict[int, int] = {}
    for own in matches:
        for query in own:
            counts[query] = counts.get(query, 0) + 1
    kept = []
    for key, own in zip(keys, matches, strict=True):
        draws = (
            (mix((mix((mix(SEED) + hashes[query]) & MASK) + key) & MASK) >> 32, query)
            for query in own
        )
        kept.append(any(u * max(counts[q], limit) < limit << 32 for u, q in draws))
    return kept


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, QUERIES + 1)
    lengths = rng.integers(0, 5, N)
    drawn = rng.choice(QUERIES, (N, 4), p=share / share.sum())
    matches = [sorted(set(row[:n].tolist())) for row, n in zip(drawn, lengths, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in matches])]).astype(np.uint32)
    flat = np.array([query for own in matches for query in own], np.uint32)
    keys = rng.integers(0, 1 << 64, N, np.uint64)
    hashes = text_hashes([f"query {i}" for i in range(QUERIES)])
    counts = np.bincount(flat, minlength=QUERIES)
    return keys, starts, flat, hashes, counts, matches


def thresholds(pool) -> np.ndarray:
    keys, starts, flat, hashes, counts, _ = pool
    return balance.thresholds(keys, starts, flat, hashes, counts, SEED)


@pytest.mark.parametrize("limit", [1, 500, 20_000])
def test_it_equals_the_reference_exactly(pool, limit: int) -> None:
    keys, _, _, hashes, _, matches = pool
    kept = balance.is_kept(thresholds(pool), limit)
    assert kept.tolist() == reference(keys.tolist(), matches, hashes.tolist(), limit)


def test_frequent_queries_are_cut_to_about_t_and_rare_ones_keep_all(pool) -> None:
    _, starts, flat, _, counts, matches = pool
    limit = 1000
    kept = balance.is_kept(thresholds(pool), limit)
    owner = np.repeat(np.arange(N), np.diff(starts.astype(int)))
    after = np.bincount(flat[kept[owner]], minlength=QUERIES)
    rare = counts <= limit
    assert rare.sum() > 100
    np.testing.assert_array_equal(after[rare], counts[rare])
    alone = np.array([own == [0] for own in matches])  # other pairs may be kept for another query
    expected = alone.sum() * limit / counts[0]
    assert abs(kept[alone].sum() - expected) < 4 * expected**0.5


def test_draws_depend_on_content_and_query_only(pool) -> None:
    keys, starts, flat, hashes, counts, _ = pool
    whole = thresholds(pool)
    half = N // 2
    first = balance.thresholds(
        keys[:half], starts[: half + 1], flat[: starts[half]], hashes, counts, SEED
    )
    np.testing.assert_array_equal(first, whole[:half])
    order = np.random.default_rng(1).permutation(QUERIES)  # the list of queries in another order
    place = np.argsort(order).astype(np.uint32)
    other = balance.thresholds(keys, starts, place[flat], hashes[order], counts[order], SEED)
    np.testing.assert_array_equal(other, whole)
    another = balance.thresholds(keys, starts, flat, hashes, counts, SEED + 1)
    assert (another != whole).mean() > 0.7


def test_draws_are_uniform(pool) -> None:
    keys, _, _, hashes, _, _ = pool
    drawn = balance.draws(keys, np.full(N, hashes[0]), 0)
    counts = np.bincount((drawn >> np.uint64(28)).astype(int), minlength=16)
    assert len(counts) == 16
    assert ((counts - N / 16) ** 2 / (N / 16)).sum() < 40  # chi squared, 15 degrees: p < 0.0005


def test_known_draw() -> None:
    """A draw never changes between versions: it decides which pairs a run was trained on."""
    key = int.from_bytes(hashlib.blake2b(b"pair", digest_size=8).digest(), "little")
    query = int(text_hashes(["cat"])[0])
    drawn = balance.draws(np.array([key], np.uint64), np.array([query], np.uint64), 0)
    assert drawn.tolist() == [mix((mix((mix(0) + query) & MASK) + key) & MASK) >> 32]


def test_limit_for_a_share_in_the_tail() -> None:
    counts = np.array([0, 1, 2, 3, 10, 84])
    assert balance.limit_for_tail(counts, 0.06) == 10
    assert balance.tail_share(counts, 10) == 0.06
    assert balance.limit_for_tail(counts, 0.05) == 3
    assert balance.tail_share(counts, 3) == 0.03
    assert balance.limit_for_tail(counts, 0.001) == 1
    with pytest.raises(UserError, match="between 0 and 1, not 1"):
        balance.limit_for_tail(counts, 1)
